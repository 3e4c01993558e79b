// Numbers and times as people read them.

const NONE = "–";
const count_ = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short_ = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? NONE : count_.format(value));
export const short = (value) => (value === null || value === undefined ? NONE : value < 10_000 ? count_.format(value) : short_.format(value));
export const percent = (value, digits = 2) =>
  value === null || value === undefined ? NONE : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)} %`;
export const share = (value, digits = 1) => (value === null || value === undefined ? NONE : `${(value * 100).toFixed(digits)} %`);

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (Math.abs(value) >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value.toFixed(at === 0 || value >= 100 ? 0 : 1)} ${units[at]}`;
}

/** How many decimals show all that a price of these has: 2 for 5000.25; at least 2, at most 8. */
export function decimals(prices) {
  let most = 2;
  for (const price of prices) {
    if (!Number.isFinite(price)) continue;
    const digits = String(price).split("e-");
    const dot = digits[0].indexOf(".");
    most = Math.max(most, (dot < 0 ? 0 : digits[0].length - dot - 1) + Number(digits[1] ?? 0));
    if (most >= 8) return 8;
  }
  return most;
}

export const price = (value, digits = 2) => (value === null || value === undefined ? NONE : value.toFixed(digits));

/** A duration in its two largest units: 4 s, 3 min 12 s, 2 h 5 min. */
export function span(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 0) return `−${span(-ms)}`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${ms < 10_000 ? (ms / 1000).toFixed(1) : s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

let zone = read();
const formats = new Map();

function read() {
  try { return localStorage.getItem("onetape.zone") === "UTC" ? "UTC" : "local"; } catch { return "local"; }
}

export const zoneName = () => zone;

/** Show times in "local" or "UTC" from now on. */
export function setZone(name) {
  zone = name;
  formats.clear();
  try { localStorage.setItem("onetape.zone", name); } catch { /* not kept, then */ }
}

function format(name, options) {
  if (!formats.has(name)) {
    formats.set(name, new Intl.DateTimeFormat("en-GB", { ...options, hourCycle: "h23", timeZone: zone === "UTC" ? "UTC" : undefined }));
  }
  return formats.get(name);
}

const DAY = { day: "2-digit", month: "short" };
const CLOCK = { hour: "2-digit", minute: "2-digit" };

export const clock = (ms) => (ms === null || ms === undefined ? NONE : format("clock", CLOCK).format(ms));
export const clockS = (ms) => (ms === null || ms === undefined ? NONE : format("clockS", { ...CLOCK, second: "2-digit" }).format(ms));
export const day = (ms) => (ms === null || ms === undefined ? NONE : format("day", DAY).format(ms));
export const month = (ms) => format("month", { month: "short", year: "numeric" }).format(ms);
export const year = (ms) => format("year", { year: "numeric" }).format(ms);
export const stamp = (ms) =>
  ms === null || ms === undefined ? NONE : format("stamp", { ...DAY, year: "numeric", ...CLOCK, second: "2-digit" }).format(ms);

/** The short name of the zone that is shown, such as EST. */
export function zoneShort() {
  if (zone === "UTC") return "UTC";
  const parts = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts(Date.now());
  return parts.find((part) => part.type === "timeZoneName")?.value ?? "local";
}

/** Minutes that the shown zone is ahead of UTC at a time. */
export const offset = (ms) => (zone === "UTC" ? 0 : -new Date(ms).getTimezoneOffset());
