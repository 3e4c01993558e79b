// The migration page: where the live migration is, what became of the keys, how the readers fare.

import { every, get } from "../api.js";
import { card, el, facts, fill, table } from "../dom.js";
import { count, share, span, stamp } from "../format.js";

const GOOD = new Set(["copied", "unchanged", "converged"]);
const words = (name) => String(name ?? "–").replaceAll("_", " ");

export function migrationPage() {
  const body = el("div", { class: "cards inner" }, el("p", { class: "empty", text: "Loading …" }));
  const node = el("div", { class: "cards" }, el("h1", { text: "Migration" }), body);
  const look = async () => {
    try {
      const answer = await get("migration");
      const view = "migration" in answer ? answer.migration : answer;
      fill(body, view === null ? none() : shown(view));
    } catch (error) {
      fill(body, el("p", { class: "trouble", role: "alert", text: error.message }));
    }
  };
  const stop = every(2000, look);
  document.addEventListener("onetape:zone", look);
  return { node, show() {}, close() { stop(); document.removeEventListener("onetape:zone", look); } };
}

function none() {
  return el("p", { class: "empty" }, "No live migration is configured here. ", el("code", { text: "onetape migrate start" }), " begins one.");
}

function shown(view) {
  const parts = [];
  if (view.trouble) parts.push(el("p", { class: "trouble", role: "alert", text: view.trouble }));
  parts.push(card("Phase", el("div", {}, phases(view), facts([
    ["Server", view.address || "–"], ["Plan", view.plan], ["Into database", view.target_db], ["Version", view.state?.version ?? "–"], ["Seen", stamp(view.at_ms)],
    ["Command at work", view.operator ? words(view.operator.command ?? view.operator.what ?? "yes") : "none"]])), { size: "wide" }));
  parts.push(card("Progress", progress(view)));
  parts.push(card("Verdict", facts([
    ["Verdict", el("b", { class: view.verdict ? (GOOD.has(view.verdict) ? "good" : "warn") : "", text: view.verdict ? words(view.verdict) : "not verified yet" })],
    ["Diverged keys", el("span", { class: view.diverged ? "bad" : "", text: count(view.diverged ?? 0) })]])));
  const reads = view.reads ?? {};
  parts.push(card("Readers", facts([
    ["Fallback rate", el("b", { class: reads.fallback_rate > 0 ? "warn" : "", text: share(reads.fallback_rate, 2) })],
    ["Reads of new names", count(reads.new_reads)], ["Fell back to old names", count(reads.old_fallbacks)],
    ["Compared", count(reads.shadow)], ["Did not agree", el("span", { class: reads.mismatches ? "bad" : "", text: count(reads.mismatches) })]])));
  parts.push(card("What became of the keys", outcomes(view), { size: "wide" }));
  if (view.mirror) parts.push(card("Mirror", facts(Object.entries(view.mirror).map(([name, value]) => [words(name), typeof value === "object" ? JSON.stringify(value) : value]))));
  parts.push(card("Clients", clients(view), { size: "wide" }));
  return parts;
}

function phases(view) {
  const at = view.phases.indexOf(view.phase);
  return el("ol", { class: "phases", "aria-label": "Phases" }, view.phases.map((phase, index) =>
    el("li", { data: { state: index < at ? "done" : index === at ? "now" : "ahead" }, "aria-current": index === at ? "step" : null, text: words(phase) })));
}

function progress(view) {
  const at = view.progress;
  if (!at) return el("p", { class: "empty", text: "No command is at work." });
  const done = at.done ?? at.keys ?? at.count ?? 0;
  const total = at.total ?? at.of ?? null;
  return el("div", {},
    el("p", {}, el("b", { text: words(at.step ?? at.what ?? at.name) }), ` ${count(done)}${total ? ` of ${count(total)}` : ""}`),
    total ? el("progress", { class: "wide", max: String(total), value: String(done), "aria-label": "Progress" }) : null,
    facts([["A second", count(at.rate ?? at.per_s)], ["Left", span(at.left_s === undefined || at.left_s === null ? null : at.left_s * 1000)]]));
}

function outcomes(view) {
  const names = Object.keys(view.outcomes ?? {});
  const rows = Object.entries(view.steps ?? {}).map(([step, counts]) => [words(step), ...names.map((name) => count(counts[name] ?? 0))]);
  if (rows.length) rows.push([el("b", { text: "all" }), ...names.map((name) => el("b", { text: count(view.outcomes[name]) }))]);
  return table("Outcomes", [["Step"], ...names.map((name) => [words(name), "num"])], rows, "The ledger holds no key yet.");
}

function clients(view) {
  const rows = (view.clients ?? []).map((one) => [one.name || one.id, one.kind, el("span", { class: one.acknowledged ? "good" : "warn", text: one.acknowledged ? `version ${one.version}` : `version ${one.version}, late` }),
    one.silent_ms === null || one.silent_ms === undefined ? el("span", { class: "good", text: "heard" }) : el("span", { class: "bad", text: `silent for ${span(one.silent_ms)}` })]);
  return table("Clients", [["Client"], ["Kind"], ["Knows"], ["Heartbeat"]], rows, "No client tells of itself.");
}
