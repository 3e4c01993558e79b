// The page: which part is shown, the connection's state, theme, zone and keys.

import { el, fill, say } from "./dom.js";
import { get } from "./api.js";
import { count, setZone, span, zoneName, zoneShort } from "./format.js";
import { Live } from "./live.js";

const PAGES = {
  chart: () => import("./pages/chart.js").then((page) => page.chartPage),
  tape: () => import("./pages/tape.js").then((page) => page.tapePage),
  patterns: () => import("./pages/patterns.js").then((page) => page.patternsPage),
  migration: () => import("./pages/migration.js").then((page) => page.migrationPage),
  system: () => import("./pages/system.js").then((page) => page.systemPage),
};
const main = document.getElementById("main");
const pill = document.getElementById("connection");
const notice = document.getElementById("notice");
const zone = document.getElementById("zone");
const live = new Live();
const app = {
  live,
  go(hash) { location.hash = hash; route(); }, // At once: a key that is pressed right after means the new place.
  utc: () => zoneName() === "UTC",
  title(name) { document.title = name ? `${name} · onetape` : "onetape"; },
  kept(name) { try { return localStorage.getItem(`onetape.${name}`); } catch { return null; } },
  keep(name, value) { try { localStorage.setItem(`onetape.${name}`, value); } catch { /* not kept, then */ } },
};
let page = null;
let shown = null;
let turn = 0;

async function route() {
  const [, name, ...rest] = location.hash.split("/");
  const wanted = Object.hasOwn(PAGES, name) ? name : "chart";
  const mine = (turn += 1);
  const parts = rest.map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  if (wanted !== shown) {
    const make = await PAGES[wanted]();
    if (mine !== turn) return;
    page?.close();
    shown = wanted;
    for (const link of document.querySelectorAll(".pages a")) {
      if (link.dataset.page === wanted) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    app.title(wanted[0].toUpperCase() + wanted.slice(1));
    page = make(app);
    main.dataset.page = wanted;
    fill(main, page.node);
    scrollTo(0, 0);
  }
  page.show(parts);
}

function tellState() {
  const feeds = live.status?.feeds ?? [];
  let state = live.state;
  let text = state === "live" ? "live" : state === "waiting" ? "reconnecting" : "connecting";
  if (state === "live" && feeds.length > 0) {
    const ages = feeds.map((feed) => feed.age_ms).filter((age) => age !== null && age !== undefined);
    const away = feeds.filter((feed) => !["live", "ended", "playing", "running", "streaming", "connected"].includes(feed.state));
    if (away.length === feeds.length) { state = "stale"; text = `${away[0].name} ${away[0].state}`; }
    else if (ages.length > 0) {
      const age = Math.min(...ages);
      if (age > 10_000) state = "stale";
      text = `live · ${age < 1000 ? "now" : span(age)}`;
    }
  }
  pill.dataset.state = state;
  say(pill.lastElementChild, text);
  pill.title = feeds.map((feed) => `${feed.name}: ${feed.state}, lag ${span(feed.lag_ms)}, ${count(feed.gaps)} gaps, ${count(feed.dropped)} dropped`).join("\n");
  const steady = live.status?.steady;
  const away = state !== "waiting" && steady && steady.on_tape === false;
  notice.hidden = !away;
  if (away) {
    say(notice, `The tape is away: ${steady.reason ?? "unknown"}. ${count(steady.held)} records are held in memory`
      + `${steady.dropped ? `, ${count(steady.dropped)} were dropped` : ""}; they are written when it is back.`);
  }
}

function askToken() {
  page?.close();
  page = shown = null;
  turn += 1;
  document.title = "Token · onetape";
  const input = el("input", { id: "token", name: "token", type: "password", autocomplete: "current-password", required: true });
  fill(main, el("div", { class: "gate" }, el("h1", { text: "A token is needed" }),
    el("p", { text: "None was shown, or not the right one. It is set in onetape.toml under [web]." }),
    el("form", { method: "get", action: "/" }, el("label", { for: "token", text: "Token" }), input, el("button", { class: "primary", text: "Open" }))));
  input.focus();
}

function setTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  app.keep("theme", root.dataset.theme);
  document.dispatchEvent(new Event("onetape:theme"));
}

function switchZone() {
  setZone(zoneName() === "UTC" ? "local" : "UTC");
  tellZone();
  document.dispatchEvent(new Event("onetape:zone"));
}

function tellZone() {
  zone.textContent = zoneShort();
  zone.setAttribute("aria-label", `Times in ${zoneName() === "UTC" ? "UTC" : "the local zone"}; change`);
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
  if (event.key === "/") { event.preventDefault(); if (page?.focusSearch) page.focusSearch(); else { app.go("#/chart"); setTimeout(() => page?.focusSearch?.(), 300); } }
  else if (event.key === "?") document.getElementById("help").showModal();
  else if (event.key === "t") setTheme();
  else if (event.key === "u") switchZone();
  else if (/^[1-9]$/.test(event.key)) page?.pickInterval?.(Number(event.key));
}

live.addEventListener("state", tellState);
live.addEventListener("status", tellState);
live.addEventListener("refused", () => get("status").catch(() => {})); // A 401 says that it is the token.
addEventListener("onetape:token", askToken);
addEventListener("hashchange", route);
addEventListener("keydown", key);
document.getElementById("theme").addEventListener("click", setTheme);
zone.addEventListener("click", switchZone);
tellZone();
tellState();
route();
