// The system page: sources, services and tasks, how each is; the controls of a replay.

import { every, get, post } from "../api.js";
import { card, el, facts, fill, table } from "../dom.js";
import { count, span, stamp } from "../format.js";

const words = (name) => String(name ?? "–").replaceAll("_", " ");
const GOOD = new Set(["live", "running", "connected", "ready", "up", "playing", "streaming", "ended", "done", "ok"]);
const BAD = new Set(["failed", "broken", "lost", "dead"]);

export function systemPage(app) {
  const top = el("div");
  const sources = el("div");
  const services = el("div");
  const tasks = el("div");
  const state = el("div");
  const told = el("p", { class: "trouble", role: "alert", hidden: true });
  const stateCard = card("Positions and risk", state, { size: "two" });
  const node = el("div", { class: "cards" }, el("h1", { text: "System" }), told, card("Now", top), stateCard, card("Sources", sources, { size: "wide" }),
    card("Services", services, { size: "wide" }), card("Tasks", tasks, { size: "wide" }));
  const replays = new Map(); // Its controls, by the name of a source: they outlive the table that is drawn around them.

  const look = async () => {
    let status;
    try { status = await get("status"); told.hidden = true; } catch (error) {
      told.hidden = false;
      told.textContent = error.message;
      return;
    }
    const feeds = await get("sources").then((answer) => answer.sources, () => null);
    fill(top, overview(status));
    const list = asList(feeds ?? status.sources);
    for (const one of list) {
      if (!controls(one)) continue;
      if (!replays.has(one.name)) replays.set(one.name, replay(one.name, say, app.utc));
      replays.get(one.name).tell(one.facts ?? {});
    }
    const focused = sources.contains(document.activeElement) ? document.activeElement : null;
    if (!focused?.matches("input, select")) { // Nobody loses a list or a calendar that is open.
      fill(sources, feedTable(list, replays));
      focused?.focus();
    }
    fill(services, serviceTable(status.services ?? {}));
    fill(tasks, taskTable(status.tasks ?? []));
    await get("state").then((answer) => { stateCard.hidden = false; fill(state, positions(answer.state ?? answer)); }, () => { stateCard.hidden = true; });
  };
  const say = (text) => { told.hidden = !text; told.textContent = text; };
  const stop = every(2000, look);
  document.addEventListener("onetape:zone", look);
  return { node, show() { app.title("System"); }, close() { stop(); document.removeEventListener("onetape:zone", look); } };
}

function asList(told) {
  return Array.isArray(told) ? told : Object.entries(told ?? {}).map(([name, facts_]) => ({ name, ...facts_ }));
}

function overview(status) {
  const { healthy, reasons = [], started_ms, now_ms, tape = {} } = status;
  return facts([
    ["Health", el("b", { class: healthy === false ? "bad" : "good", text: healthy === false ? "not well" : "well" })],
    ...reasons.map((reason) => ["Reason", el("span", { class: "bad", text: reason })]),
    ["Tape", el("span", { class: tape.on_tape === false ? "bad" : "good", text: tape.on_tape === false ? `away: ${tape.reason}` : "usable" })],
    ["Held in memory", count(tape.held)], ["Dropped", count(tape.dropped)],
    ["Started", stamp(started_ms)], ["Running for", span(started_ms && now_ms ? now_ms - started_ms : null)],
  ]);
}

function dot(state) {
  const kind = GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "warn";
  return el("span", { class: kind }, el("i", { class: "dot" }), words(state));
}

const controls = (one) => one.replay === true || one.controls || one.kind === "replay" || one.kind === "dbn" || one.kind === "tape";

function feedTable(list, replays) {
  const rows = list.map((one) => [
    el("b", { text: one.name }), one.kind, dot(one.state), count(one.stored ?? one.records), span(one.lag_ms), count(one.gaps), count(one.dropped), count(one.reconnects),
    count(one.refused), el("span", { class: "long", text: one.trouble ?? one.last_error ?? "" }), replays.get(one.name)?.node ?? ""]);
  return table("Sources", [["Name"], ["Kind"], ["State"], ["Records", "num"], ["Lag", "num"], ["Gaps", "num"], ["Dropped", "num"], ["Reconnects", "num"], ["Refused", "num"], ["Trouble"], [""]], rows, "No source is configured.");
}

/** The controls of a replay, and where it stands: {node, tell(facts)}. */
function replay(name, say, utc) {
  const act = (action, value) => post(`replay/${encodeURIComponent(name)}`, { action, value }).then(() => say(""), (error) => say(error.message));
  const button = (text, action) => el("button", { type: "button", text, on: { click: () => act(action) } });
  const speed = el("select", { "aria-label": `Speed of ${name}`, on: { change: (event) => act("speed", Number(event.target.value)) } },
    el("option", { value: "", text: "speed", disabled: true, selected: true }), [1, 10, 60, 600, 0].map((value) => el("option", { value: String(value), text: factor(value) })));
  const to = el("input", { type: "datetime-local", step: "1", "aria-label": `Go to a time in ${name}`, title: "Go to a time", on: { change: () => {
    const t = to.value ? Date.parse(utc() ? `${to.value}Z` : to.value) : NaN;
    if (Number.isFinite(t)) act("seek", t);
  } } });
  const where = el("small");
  return {
    node: el("span", { class: "controls" }, button("Play", "play"), button("Pause", "pause"), speed, to, where),
    tell({ position_ns: at, paused, speed: times }) {
      where.textContent = [at ? stamp(at / 1e6) : null, paused ? "paused" : times === undefined ? null : factor(times)].filter(Boolean).join(", ");
    },
  };
}

const factor = (speed) => (speed === 0 ? "fastest" : `${speed}×`);

function serviceTable(services) {
  const rows = Object.entries(services).map(([name, status]) => {
    const { trouble, state, running, ...others } = status ?? {};
    const text = Object.entries(others).filter(([key, value]) => typeof value !== "object" && key !== "name").slice(0, 8).map(([key, value]) => `${words(key)} ${typeof value === "number" ? count(value) : value}`).join(" · ");
    return [el("b", { text: words(name) }), trouble ? el("span", { class: "bad", text: trouble }) : dot(state ?? (running === false ? "stopped" : "running")), el("span", { class: "long", text })];
  });
  return table("Services", [["Name"], ["State"], ["Facts"]], rows, "No service runs.");
}

function taskTable(tasks) {
  const rows = tasks.map((task) => [el("b", { text: task.name }), dot(task.state), count(task.restarts), stamp(task.since_ms ?? (task.since_ns ? task.since_ns / 1e6 : null)), el("span", { class: "long", text: task.trouble ?? "" })]);
  return table("Tasks", [["Name"], ["State"], ["Restarts", "num"], ["Since"], ["Trouble"]], rows, "No task is told of.");
}

function positions(told) {
  const list = asList(told.positions ?? []).map((one) => [one.symbol ?? one.name, count(one.quantity ?? one.size), one.average_price ?? one.entry_price ?? one.price, one.current_price ?? one.last_price,
    money(one.unrealized_pnl ?? one.unrealized), money(one.realized_pnl ?? one.realized)]);
  const risk = told.risk ?? told.risk_parameters ?? {};
  const pairs = Object.entries(risk).filter(([, value]) => typeof value !== "object").map(([name, value]) => [words(name), String(value)]);
  return el("div", {}, table("Positions", [["Symbol"], ["Quantity", "num"], ["Average", "num"], ["Price", "num"], ["Open P&L", "num"], ["Taken P&L", "num"]], list, "No position is open."), pairs.length ? facts(pairs) : null);
}

function money(value) {
  if (value === null || value === undefined) return "–";
  return el("span", { class: value < 0 ? "down" : "up", text: value.toFixed(2) });
}
