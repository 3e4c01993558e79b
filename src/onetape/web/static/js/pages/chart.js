// The chart page: one symbol's candles, live, with all of its history behind them.

import { Candles } from "../chart/candles.js";
import { History } from "../chart/history.js";
import { depthCard, quoteCard, tradesCard, watchCard, watchSide } from "../chart/quote.js";
import { symbolSearch } from "../chart/search.js";
import { BarWindow, indexAt } from "../chart/window.js";
import { el, fill, say } from "../dom.js";
import { clock, count, price, short, span, stamp } from "../format.js";

const INTERVALS = ["1s", "5s", "15s", "1min", "5min", "15min", "1h", "4h", "1d"];
const FIRST = 300; // Bars that come with a subscription.
const NEAR = 400; // Bars left of the screen below which older ones are fetched.
const MOST = 6000; // Bars kept; farther ones are dropped and fetched again.

export function chartPage(app) {
  return new ChartPage(app);
}

class ChartPage {
  constructor(app) {
    this.app = app;
    this.live = app.live;
    this.symbol = null;
    this.interval = "1min";
    this.candles = null;
    this.pending = null;
    this.last = null;
    this.build();
    this.abort = new AbortController();
    const { signal } = this.abort;
    this.live.addEventListener("message", (event) => this.hear(event.detail), { signal });
    document.addEventListener("onetape:theme", () => this.candles?.paint(), { signal });
    document.addEventListener("onetape:zone", () => this.candles?.draw(), { signal });
    this.stop = watchSide([
      [5000, () => this.watch.ask(this.symbol).then((told) => this.known(told))],
      [700, () => this.symbol && this.depth.ask(this.symbol, this.digits, this.still())],
      [1000, () => this.symbol && this.trades.ask(this.symbol, this.digits, this.still())],
      [1000, () => this.quote.tick()],
      [15_000, () => this.renewGaps()],
    ]);
  }

  get digits() { return this.candles?.digits ?? 2; }

  still() {
    const symbol = this.symbol;
    return () => this.symbol === symbol;
  }

  build() {
    this.search = symbolSearch("", (symbol) => this.app.go(`#/chart/${encodeURIComponent(symbol)}/${this.interval}`));
    this.choices = el("div", { class: "intervals", role: "group", "aria-label": "Interval" }, INTERVALS.map((interval) =>
      el("button", { type: "button", data: { interval }, text: interval, "aria-pressed": "false", on: { click: () => this.choose(interval) } })));
    this.date = el("input", { type: "datetime-local", "aria-label": "Go to a time", title: "Go to a time", on: { change: () => this.jump() } });
    this.toLive = el("button", { type: "button", class: "primary", hidden: true, text: "Newest", title: "Back to the newest bar (End)", on: { click: () => this.newest() } });
    this.legend = el("p", { class: "legend" });
    this.hover = el("p", { class: "hover", hidden: true });
    this.canvas = el("div", { class: "canvas", tabindex: "0", role: "application", "aria-roledescription": "chart", on: { keydown: (event) => this.key(event) } });
    this.canvas.rows = () => this.window.rows; // What is drawn, for programs that look at the page.
    this.empty = el("div", { class: "blank", hidden: true });
    this.notes = el("span", { class: "notes", "aria-live": "polite" });
    this.quote = quoteCard();
    this.depth = depthCard();
    this.trades = tradesCard();
    this.watch = watchCard((symbol) => this.app.go(`#/chart/${encodeURIComponent(symbol)}/${this.interval}`));
    this.node = el("div", { class: "chart-page" },
      el("h1", { class: "hidden", text: "Chart" }),
      el("div", { class: "bar" }, this.search.node, this.choices, el("span", { class: "spring" }), this.date, this.toLive),
      el("div", { class: "stage" }, this.legend, this.hover, this.canvas, this.empty),
      el("aside", { class: "side", "aria-label": "Quote, depth, trades and symbols" }, this.quote.node, this.depth.node, this.trades.node, this.watch.node),
      el("p", { class: "foot" }, this.notes,
        el("span", { class: "credit" }, "Charts: ", el("a", { href: "https://www.tradingview.com/", rel: "noopener noreferrer", target: "_blank", text: "TradingView" }),
          " Lightweight Charts™, © 2026 TradingView, Inc.")));
  }

  /** Show what the address says: a symbol and an interval. */
  show([symbol, interval]) {
    const wanted = INTERVALS.includes(interval) ? interval : this.interval;
    if (!symbol) {
      this.wanted = wanted;
      if (this.symbol === null) this.blank("Looking for symbols on the tape …");
      else this.open(this.symbol, wanted);
      return;
    }
    this.open(symbol, wanted);
  }

  known({ symbols, books }) {
    this.depth.known(books);
    const info = symbols.find((one) => one.symbol === this.symbol);
    if (info) this.quote.change(info);
    if (this.symbol === null && symbols.length > 0) {
      const kept = this.app.kept("symbol");
      this.open(symbols.some((one) => one.symbol === kept) ? kept : symbols[0].symbol, this.wanted ?? this.interval);
    } else if (this.symbol === null) {
      this.blank("The tape holds no symbol yet. As soon as a source brings one, it is here.");
    }
  }

  blank(text) {
    this.empty.hidden = !text;
    say(this.empty, text ?? "");
  }

  open(symbol, interval) {
    if (this.symbol === symbol && this.interval === interval && this.candles) return;
    this.symbol = symbol;
    this.interval = interval;
    this.app.keep("symbol", symbol);
    this.app.title(symbol);
    this.search.name(symbol);
    for (const choice of this.choices.children) choice.setAttribute("aria-pressed", String(choice.dataset.interval === interval));
    this.quote.clear();
    this.depth.forget();
    this.begin();
    this.live.follow({ symbol, interval, history: FIRST, from: () => (this.window.live && this.told ? this.window.position : null) });
  }

  /** Start with an empty window: what comes first (the snapshot, or a page while the stream is away) is drawn. */
  begin() {
    this.history?.close();
    this.candles?.close();
    this.window = new BarWindow();
    this.history = new History(this.symbol, this.interval, this.window);
    this.candles = new Candles(this.canvas, this.window);
    this.drawn = false;
    this.told = false; // Whether the stream gave a snapshot: what comes before it is of what was followed before.
    this.last = null;
    this.pending = null;
    this.blank("Loading …");
    const scale = this.candles.chart.timeScale();
    scale.subscribeVisibleLogicalRangeChange(() => this.moved());
    this.candles.chart.subscribeCrosshairMove((at) => this.point(at));
    const { history, window } = this;
    history.page(null, FIRST).then((page) => {
      if (history !== this.history || this.drawn) return;
      window.replace(page, true);
      this.first();
    }, (error) => { if (history === this.history && !this.drawn) this.blank(error.message); });
  }

  first() {
    this.drawn = true;
    this.blank(this.window.rows.length === 0 ? `No ${this.interval} bars of ${this.symbol} yet.` : null);
    this.candles.draw();
    const { width } = this.canvas.getBoundingClientRect();
    this.candles.chart.timeScale().applyOptions({ barSpacing: Math.max(5, Math.min(10, width / 120)) });
    this.candles.chart.timeScale().scrollToRealTime();
    this.tell();
    this.moved();
  }

  /** What the stream says. */
  hear(message) {
    if (message.op === "error") {
      if (this.told) return;
      if (!this.drawn || this.window.rows.length === 0) this.blank(message.message);
      clearTimeout(this.again); // A symbol may have its first tick later.
      this.again = setTimeout(() => { if (!this.told) this.live.subscribe(); }, 5000);
      return;
    }
    if (message.op === "snapshot") {
      if (message.symbol === this.symbol && message.interval === this.interval) this.restart(message);
      return;
    }
    const mine = message.op === "delta" ? message.symbols?.[this.symbol] : null;
    if (!mine || (message.interval && message.interval !== this.interval) || !this.told) return;
    if (message.position <= this.window.position && !mine.bars?.length) return;
    this.history.note(message.position, mine.bars ?? []);
    this.window.addGaps(mine.gaps);
    const change = this.window.change(mine.bars ?? [], mine.revised ?? []);
    this.window.position = Math.max(this.window.position, message.position);
    this.last = mine.last ?? this.last;
    this.paintSoon(change);
  }

  /** A snapshot: the newest bars. Older ones that are held were not followed meanwhile, so they are fetched again. */
  async restart(snapshot) {
    this.told = true;
    this.last = snapshot.last ?? this.last;
    if (this.last) this.quote.show(this.last, this.digits);
    const held = this.window.rows.length;
    if (!this.drawn || held <= snapshot.bars.length) {
      this.window.replace({ ...snapshot, more: snapshot.bars.length > 0 }, true);
      this.first();
      return;
    }
    const { window, history } = this;
    const wasLive = window.live;
    window.position = snapshot.position;
    for (let tries = 0; tries < 20 && history.busy; tries += 1) await new Promise((done) => setTimeout(done, 100));
    await history.alone(async () => {
      const page = await history.page(wasLive ? null : window.last + 1, Math.min(5000, held + snapshot.bars.length));
      if (history !== this.history) return page;
      window.replace(page, wasLive);
      window.position = Math.max(page.position ?? 0, snapshot.position);
      return page;
    }).catch(() => { if (wasLive) { window.replace({ ...snapshot, more: true }, true); } });
    if (history === this.history) { this.candles.draw(); this.tell(); }
  }

  /** Ask again where something is missing: a source may have said so since, or a gap was filled. */
  async renewGaps() {
    const { history, window } = this;
    if (!this.drawn || !window.live || history.busy) return;
    const page = await history.page(null, FIRST);
    if (history !== this.history) return;
    window.renewGaps(page);
    this.candles.shades.requestUpdate?.();
    this.tell();
  }

  /** Draw changes once a frame of the screen, however many came. */
  paintSoon(change) {
    if (this.pending) {
      this.pending.tail.push(...change.tail);
      this.pending.whole ||= change.whole;
      return;
    }
    this.pending = change;
    const { candles } = this;
    requestAnimationFrame(() => {
      const made = this.pending;
      this.pending = null;
      if (!made || candles !== this.candles || !this.drawn) return;
      const newest = new Map(made.tail.map((row) => [row[0], row]));
      made.tail = [...newest.values()].sort((a, b) => a[0] - b[0]);
      if (this.window.rows.length > 0 && !this.empty.hidden) this.blank(null);
      candles.update(made);
      if (this.last) this.quote.show(this.last, this.digits);
      this.tell();
    });
  }

  /** The view moved: fetch what will be seen next, drop what is far. */
  moved() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.settle(), 400);
    const range = this.candles.chart.timeScale().getVisibleLogicalRange();
    if (!range || !this.drawn || this.window.rows.length === 0) return;
    this.toLive.hidden = this.window.live && range.to > this.window.rows.length - 2;
    if (this.history.busy) return;
    if (range.from < NEAR && this.window.more) this.fetch("older");
    else if (!this.window.live && range.to > this.window.rows.length - NEAR) this.fetch("newer");
  }

  async fetch(which) {
    const { history, candles } = this;
    this.node.dataset.loading = "true";
    try {
      const page = await (which === "older" ? history.older() : history.newer(Date.now()));
      if (page && history === this.history) {
        candles.draw({ from: 0, to: which === "older" ? page.added : 0 });
        this.tell();
      }
    } catch (error) {
      say(this.notes, error.message);
      await new Promise((done) => setTimeout(done, 1000));
    } finally {
      delete this.node.dataset.loading;
    }
    if (history === this.history) this.moved();
  }

  settle() {
    const range = this.candles?.chart.timeScale().getVisibleLogicalRange();
    if (!range || this.history.busy || this.window.rows.length <= MOST) return;
    const dropped = this.window.trim(MOST, (range.from + range.to) / 2);
    this.candles.draw({ from: dropped, to: 0 });
    this.tell();
  }

  choose(interval) {
    this.app.go(`#/chart/${encodeURIComponent(this.symbol)}/${interval}`);
  }

  async jump() {
    const t = this.date.value ? Date.parse(this.app.utc() ? `${this.date.value}Z` : this.date.value) : NaN;
    if (!Number.isFinite(t)) return;
    const { history, candles } = this;
    try {
      await history.jump(t, Date.now());
    } catch (error) { say(this.notes, error.message); return; }
    if (history !== this.history) return;
    candles.draw();
    const at = indexAt(this.window.rows, t);
    candles.chart.timeScale().setVisibleLogicalRange({ from: at - 60, to: at + 60 });
    this.tell();
  }

  newest() {
    if (this.window.live) { this.candles.chart.timeScale().scrollToRealTime(); return; }
    this.begin();
    this.live.follow(this.live.follows);
  }

  key(event) {
    const scale = this.candles?.chart.timeScale();
    const range = scale?.getVisibleLogicalRange();
    if (!range || event.ctrlKey || event.metaKey || event.altKey) return;
    const width = range.to - range.from;
    const move = { ArrowLeft: -width / 8, ArrowRight: width / 8, PageUp: -width, PageDown: width }[event.key];
    const zoom = { "+": 0.8, "=": 0.8, "-": 1.25 }[event.key];
    if (move) scale.setVisibleLogicalRange({ from: range.from + move, to: range.to + move });
    else if (zoom) scale.setVisibleLogicalRange({ from: range.to - width * zoom, to: range.to });
    else if (event.key === "End") this.newest();
    else return;
    event.preventDefault();
  }

  /** The bar under the cross-hair, or the last one. */
  point(at) {
    const index = at?.logical === undefined || at.logical === null ? -1 : Math.round(at.logical);
    const row = at?.point && this.window.rows[index] ? this.window.rows[index] : null;
    this.pointed = row;
    this.tellBar();
    const gap = row && this.candles.shades.at(row[0], this.window.rows[index + 1]?.[0]);
    const changed = row && (row[6] > 0 || this.window.revised.has(row[0]));
    this.hover.hidden = !gap && !changed;
    if (gap) say(this.hover, `${gap[2]}: ${span(gap[1] - gap[0])} from ${stamp(gap[0])} to ${clock(gap[1])}`);
    else if (changed) say(this.hover, "revised: a late tick or a correction changed this bar");
  }

  tellBar() {
    const row = this.pointed ?? this.window?.rows.at(-1);
    if (!row) { fill(this.legend); return; }
    const { digits } = this;
    const kind = row[4] >= row[1] ? "up" : "down";
    fill(this.legend, el("b", { text: this.symbol }), el("span", { text: this.interval }), el("time", { text: stamp(row[0]) }),
      [["O", row[1]], ["H", row[2]], ["L", row[3]], ["C", row[4]]].map(([name, value]) => el("span", { class: kind }, el("small", { text: name }), price(value, digits))),
      el("span", {}, el("small", { text: "V" }), short(row[5])));
  }

  /** Say in words what is drawn: under the chart, and to who cannot see it. */
  tell() {
    const { rows, gaps, live } = this.window;
    this.tellBar();
    const marked = this.candles.marked?.length ?? 0;
    const inside = gaps.filter(([start, end]) => rows.length && end > rows[0][0] && start < rows.at(-1)[0]).length;
    const parts = [`${count(rows.length)} bars${live ? "" : " of the past"}`];
    if (inside) parts.push(`${inside} ${inside === 1 ? "gap" : "gaps"} shaded`);
    if (marked) parts.push(`${marked} revised`);
    say(this.notes, parts.join(" · "));
    Object.assign(this.canvas.dataset, {
      bars: rows.length, first: rows[0]?.[0] ?? "", last: rows.at(-1)?.[0] ?? "", close: rows.at(-1)?.[4] ?? "", volume: rows.at(-1)?.[5] ?? "",
      gaps: inside, shades: this.candles.shades.bands.length, revised: marked, live, position: this.window.position ?? "",
    });
    const last = rows.at(-1);
    this.canvas.setAttribute("aria-label", last
      ? `${this.symbol}, ${this.interval} candles, ${rows.length} bars from ${stamp(rows[0][0])} to ${stamp(last[0])}, last close ${price(last[4], this.digits)}, ${inside} gaps, ${marked} revised bars`
      : `${this.symbol}, no bars`);
    this.toLive.hidden = live && this.atRight();
  }

  atRight() {
    const range = this.candles.chart.timeScale().getVisibleLogicalRange();
    return !range || range.to > this.window.rows.length - 2;
  }

  focusSearch() { this.search.input.focus(); }

  pickInterval(number) { if (INTERVALS[number - 1]) this.choose(INTERVALS[number - 1]); }

  close() {
    this.stop();
    this.abort.abort();
    this.history?.close();
    this.candles?.close();
    this.live.follow(null);
  }
}
