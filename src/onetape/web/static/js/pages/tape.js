// The tape page: how large it is, how fast it grows, what of which days it holds.

import { every, get } from "../api.js";
import { card, el, facts, fill, table } from "../dom.js";
import { bytes, count, share, short, stamp } from "../format.js";

const DAYS = 91;
const KINDS = ["covered", "missing", "quiet", "closed"];
const SAID = { covered: "covered", missing: "something is missing", quiet: "quiet", closed: "market closed", none: "nothing known" };

export function tapePage(app) {
  const size = el("div");
  const rates = el("div");
  const calendar = el("div", {}, el("p", { class: "empty", text: "Loading …" }));
  const choice = el("select", { "aria-label": "Symbol of the calendar" });
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const node = el("div", { class: "cards" }, el("h1", { text: "Tape" }), trouble,
    card("File", size),
    card("Coverage", el("div", {}, el("label", { class: "inline" }, "Symbol ", choice), calendar), { size: "two", note: `the last ${DAYS} days` }),
    card("Symbols", rates, { size: "wide" }));
  let shown = "";

  const cover = async () => {
    if (!choice.value) return;
    const { days } = await get("coverage", { symbol: choice.value, days: DAYS });
    fill(calendar, legend(), year(days));
  };
  choice.addEventListener("change", () => cover().catch((error) => fill(calendar, el("p", { class: "empty", text: error.message }))));

  const look = async () => {
    let tape;
    try {
      tape = await get("tape");
      trouble.hidden = true;
    } catch (error) {
      trouble.hidden = false;
      trouble.textContent = error.message;
      return;
    }
    const facts_ = flat(tape);
    fill(size, file(facts_));
    fill(rates, symbols(tape));
    const names = list(tape).map((one) => one.symbol);
    if (names.join("\n") !== shown) {
      const most = list(tape).reduce((best, one) => ((one.ticks ?? 0) > (best?.ticks ?? -1) ? one : best), null);
      const before = [choice.value, app.kept("symbol"), most?.symbol].find((name) => name && names.includes(name));
      fill(choice, names.map((name) => el("option", { value: name, text: name })));
      if (before) choice.value = before;
      shown = names.join("\n");
      await cover();
    }
  };
  const stops = [every(3000, look), every(30_000, () => (shown ? cover() : null))];
  const redraw = () => { look(); };
  document.addEventListener("onetape:zone", redraw);
  return { node, show() {}, close() { stops.forEach((stop) => stop()); document.removeEventListener("onetape:zone", redraw); } };
}

/** The facts of the tape, whether they stand by themselves or under "stats". */
function flat(tape) {
  return { ...tape, ...(tape.stats ?? {}) };
}

function file(tape) {
  const steady = tape.steady ?? {};
  return facts([
    ["State", steady.on_tape === false ? el("span", { class: "bad", text: `away: ${steady.reason ?? "unknown"}` }) : el("span", { class: "good", text: "on the tape" })],
    ["File", el("code", { text: tape.path ?? "–" })],
    ["Size", bytes(tape.file_bytes)],
    ["Write-ahead log", bytes(tape.wal_bytes)],
    ["Ticks", count(tape.ticks)],
    ["Bytes a tick", tape.ticks ? (tape.file_bytes / tape.ticks).toFixed(1) : "–"],
    ["Symbols", Array.isArray(tape.symbols) ? count(tape.symbols.length) : count(tape.symbols)],
    ["Position", count(tape.head)],
    ["In the journal", count(tape.unsealed)],
    ["Chunks", count(tape.chunks)],
    ["Own bars kept", count(tape.bars_kept)],
    ["Refused records", count(tape.quarantined)],
    ["Ticks are kept", tape.retention_days === null ? "for ever" : `${tape.retention_days ?? "–"} days`],
    ["Durability", tape.durability],
    ["Held in memory", steady.held === undefined ? "–" : `${count(steady.held)} of ${count(steady.ring_records)}`],
    ["Dropped", steady.dropped === undefined ? "–" : count(steady.dropped)],
    ["Outages", steady.outages === undefined ? "–" : count(steady.outages)],
  ]);
}

function list(tape) {
  const rates = tape.rates ?? {};
  const memory = tape.memory ?? [];
  const kept = new Map((Array.isArray(memory) ? memory : Object.entries(memory).map(([symbol, facts_]) => ({ symbol, ...(typeof facts_ === "object" ? facts_ : { bytes: facts_ }) })))
    .map((one) => [one.symbol, one]));
  const known = new Map();
  for (const one of Array.isArray(tape.symbols) ? tape.symbols : []) known.set(one.symbol, one);
  const told = Array.isArray(rates) ? new Map(rates.map((one) => [one.symbol, one])) : new Map(Object.entries(rates).map(([symbol, rate]) => [symbol, typeof rate === "object" ? rate : { rate }]));
  const names = [...new Set([...known.keys(), ...told.keys(), ...kept.keys()])].filter((name) => name && !name.startsWith("patterns:"));
  return names.map((symbol) => ({ ...kept.get(symbol), ...told.get(symbol), ...known.get(symbol), symbol, kept: kept.get(symbol), told: told.get(symbol) }));
}

function symbols(tape) {
  const rows = list(tape).map((one) => {
    const rate = one.rate_per_s ?? null;
    return [
      el("a", { href: `#/chart/${encodeURIComponent(one.symbol)}`, text: one.symbol }), count(one.ticks),
      rate === null ? "–" : rate >= 100 ? short(rate) : rate.toFixed(1),
      bytes(one.kept?.bytes ?? one.bytes), count(one.kept?.records ?? one.records), stamp(one.last_ms ?? (one.ts_last_ns ? one.ts_last_ns / 1e6 : null)),
    ];
  });
  return table("Symbols", [["Symbol"], ["Ticks", "num"], ["Ticks/s", "num"], ["Memory", "num"], ["Records in memory", "num"], ["Newest"]], rows, "The tape holds no symbol yet.");
}

/** What the share of a day says: the worst that is known of it. */
function kindOf(day) {
  const total = KINDS.reduce((sum, kind) => sum + (day[kind] ?? 0), 0);
  if (total === 0) return day.ticks > 0 ? "covered" : "none";
  if (day.missing > 0) return "missing";
  if (day.covered > 0) return "covered";
  return day.quiet > 0 ? "quiet" : "closed";
}

function legend() {
  return el("ul", { class: "kinds" }, Object.entries(SAID).map(([kind, text]) => el("li", {}, el("i", { data: { kind } }), text)));
}

function year(days) {
  const cells = days.map((day) => {
    const kind = kindOf(day);
    const total = KINDS.reduce((sum, name) => sum + (day[name] ?? 0), 0);
    const parts = KINDS.filter((name) => day[name] > 0).map((name) => `${name} ${total ? share(day[name] / total, 0) : ""}`);
    const text = `${day.date}: ${SAID[kind]}${parts.length ? ` (${parts.join(", ")})` : ""}, ${count(day.ticks ?? 0)} ticks`;
    return el("li", { data: { kind }, title: text, "aria-label": text, style: { "grid-row": String(((new Date(`${day.date}T00:00Z`).getUTCDay() + 6) % 7) + 1) } },
      el("span", { text: day.date.slice(8) }));
  });
  const missing = days.filter((day) => kindOf(day) === "missing").length;
  return el("div", {},
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Coverage, a square a day" }, el("ol", { class: "calendar" }, cells)),
    el("p", { class: "under", text: days.length === 0 ? "Nothing is known yet." : `${days[0].date} to ${days.at(-1).date}; ${missing === 0 ? "no day with something missing" : `${missing} ${missing === 1 ? "day" : "days"} with something missing`}.` }));
}

