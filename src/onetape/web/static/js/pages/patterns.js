// The patterns page: what was detected lately, and how often it came true.

import { every, get } from "../api.js";
import { card, el, fill, table } from "../dom.js";
import { clock, count, day, decimals, price, share, stamp } from "../format.js";

const WAY = (side) => (side > 0 || side === "buy" || side === "up" || side === "bullish" ? "up" : side < 0 || side === "sell" || side === "down" || side === "bearish" ? "down" : "");

export function patternsPage() {
  const recent = el("div");
  const statistics = el("div");
  const node = el("div", { class: "cards" }, el("h1", { text: "Patterns" }), card("Detections", recent, { size: "wide", note: "newest first" }),
    card("How often they came true", statistics, { size: "wide" }));
  const ask = async (path, into, shown) => {
    try { fill(into, shown(await get(path, path === "patterns" ? { limit: 100 } : {}))); } catch (error) {
      fill(into, el("p", { class: "empty", text: error.status === 404 || error.status === 503 ? "The service of patterns does not run. onetape.toml turns it on under [services]." : error.message }));
    }
  };
  const look = async () => {
    await ask("patterns", recent, (answer) => detections(answer.patterns ?? answer.detections ?? []));
    await ask("patterns/statistics", statistics, (answer) => rates(answer.statistics ?? answer.patterns ?? answer));
  };
  const stop = every(3000, look);
  document.addEventListener("onetape:zone", look);
  return { node, show() {}, close() { stop(); document.removeEventListener("onetape:zone", look); } };
}

function at(one) {
  return one.t_ms ?? one.at_ms ?? one.ts_ms ?? (one.ts_event_ns ? one.ts_event_ns / 1e6 : null);
}

function detections(found) {
  const rows = found.slice().sort((a, b) => at(b) - at(a)).map((one) => {
    return [when(at(one)), el("a", { href: `#/chart/${encodeURIComponent(one.symbol)}`, text: one.symbol }), words(one.detector ?? one.pattern ?? one.name ?? one.type),
      arrow(one.direction ?? one.side), price(one.price, decimals([one.price])), meter(one.confidence)];
  });
  return table("Detections", [["Time"], ["Symbol"], ["Pattern"], ["Direction"], ["Price", "num"], ["Confidence", "num"]], rows, "No pattern was detected yet.");
}

function rates(told) {
  const list = Array.isArray(told) ? told : Object.entries(told).filter(([, one]) => one && typeof one === "object" && !Array.isArray(one)).map(([name, one]) => ({ name, ...one }));
  const rows = list.map((one) => {
    const rate = one.success_rate ?? one.rate ?? null;
    return [words(one.detector ?? one.name ?? one.pattern), arrow(one.direction), one.interval, count(one.total ?? one.detections ?? one.count), count(one.successes ?? one.succeeded ?? one.hits), count(one.failures ?? one.failed ?? one.misses), meter(rate)];
  });
  return table("Statistics", [["Pattern"], ["Direction"], ["Bars"], ["Judged", "num"], ["Came true", "num"], ["Failed", "num"], ["Rate", "num"]], rows, "Nothing to count yet.");
}

function arrow(side) {
  const way = WAY(side);
  return el("span", { class: way, text: way === "up" ? "▲ up" : way === "down" ? "▼ down" : "–" });
}

/** A time in as little room as tells it: without the day for what is younger than half of one. */
function when(ms) {
  return el("time", { title: stamp(ms), text: Date.now() - ms < 43_200_000 ? clock(ms) : `${day(ms)} ${clock(ms)}` });
}

const words = (name) => String(name ?? "–").replaceAll("_", " ");

function meter(value) {
  if (value === null || value === undefined) return "–";
  const part = Math.max(0, Math.min(1, value));
  return el("span", { class: "meter" }, el("progress", { max: "1", value: String(part), "aria-hidden": "true" }), share(part, 0));
}
