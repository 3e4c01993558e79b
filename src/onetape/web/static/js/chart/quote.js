// The quote: last trade, bid and ask, spread; the ladder of the order book; the newest trades; the watch list.

import { ApiError, every, get } from "../api.js";
import { card, el, facts, fill, say } from "../dom.js";
import { clockS, count, decimals, percent, price, short, span } from "../format.js";

const LEVELS = 10;

/** The last trade and the best prices. `last` is [t_ms, price, size, bid, ask, bid_size, ask_size]. */
export function quoteCard() {
  const value = el("span", { class: "last", text: "–" });
  const change = el("span", { class: "change" });
  const bid = el("b", { class: "up", text: "–" });
  const ask = el("b", { class: "down", text: "–" });
  const sizes = [el("span"), el("span")];
  const spread = el("span", { text: "–" });
  const trade = el("span", { text: "–" });
  const age = el("span", { text: "–" });
  let before = null;
  let at = null;
  const node = el("section", { class: "quote", "aria-label": "Quote" },
    el("p", { class: "big" }, value, change),
    el("div", { class: "sides" }, el("p", {}, el("small", { text: "Bid" }), bid, sizes[0]), el("p", {}, el("small", { text: "Ask" }), ask, sizes[1])),
    facts([["Spread", spread], ["Last trade", trade], ["Age", age]]));
  return {
    node,
    show(last, digits) {
      const [t, tradePrice, size, bidPrice, askPrice, bidSize, askSize] = last;
      at = t;
      if (tradePrice !== null) {
        say(value, price(tradePrice, digits));
        value.dataset.move = before === null || tradePrice === before ? "" : tradePrice > before ? "up" : "down";
        before = tradePrice;
        say(trade, `${size === null ? "" : `${short(size)} at `}${clockS(t)}`);
      }
      say(bid, price(bidPrice, digits));
      say(ask, price(askPrice, digits));
      say(sizes[0], bidSize === null ? "" : `× ${short(bidSize)}`);
      say(sizes[1], askSize === null ? "" : `× ${short(askSize)}`);
      say(spread, bidPrice === null || askPrice === null ? "–" : (askPrice - bidPrice).toFixed(digits));
    },
    change(info) {
      say(change, percent(info.change_pct));
      change.className = `change ${info.change < 0 ? "down" : "up"}`;
    },
    tick() { say(age, at === null ? "–" : span(Math.max(0, Date.now() - at))); },
    clear() { before = at = null; for (const part of [value, bid, ask, spread, trade, age]) say(part, "–"); say(change, ""); sizes.forEach((part) => say(part, "")); },
  };
}

/** The ladder: asks above, bids below, the best in the middle. Shown, and asked for, only where a source keeps a book. */
export function depthCard() {
  const body = el("div", { class: "ladder" });
  const node = card("Depth", body);
  node.hidden = true;
  let askAgainAt = 0;
  let books = new Set();
  const row = (kind, [level, size, orders], most, digits) => {
    const line = el("div", { class: `level ${kind}` },
      el("span", { text: price(level, digits) }), el("span", { text: short(size) }), el("small", { text: orders ? `${orders}` : "" }));
    line.style.setProperty("--share", `${Math.round((100 * size) / most)}%`);
    return line;
  };
  return {
    node,
    forget() { askAgainAt = 0; node.hidden = true; },
    known(symbols) { books = new Set(symbols); },
    async ask(symbol, digits, still) {
      if (!books.has(symbol)) { node.hidden = true; return; }
      if (Date.now() < askAgainAt) return;
      try {
        const { bids, asks, at_ms } = await get("depth", { symbol });
        if (!still()) return;
        const shown = [asks.slice(0, LEVELS).reverse(), bids.slice(0, LEVELS)];
        const most = Math.max(1, ...shown.flat().map(([, size]) => size));
        node.hidden = false;
        node.querySelector("header").title = `As of ${clockS(at_ms)}`;
        fill(body, shown[0].map((level) => row("ask", level, most, digits)), shown[1].map((level) => row("bid", level, most, digits)));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (!still()) return;
        node.hidden = true;
        askAgainAt = Date.now() + 3000;
      }
    },
  };
}

/** The newest ticks, newest first. */
export function tradesCard() {
  const body = el("div", { class: "trades" });
  return {
    node: card("Trades", body),
    async ask(symbol, digits, still) {
      const { ticks } = await get("ticks", { symbol, limit: 40 });
      if (!still()) return;
      const rows = ticks.filter((tick) => tick.price !== null && tick.price !== undefined)
        .sort((a, b) => b.t_ms - a.t_ms || (b.seq ?? 0) - (a.seq ?? 0)).slice(0, 24);
      fill(body, rows.length === 0 ? el("p", { class: "empty", text: "No trades yet." }) : rows.map((tick) => el("div", { class: "trade" },
        el("span", { text: clockS(tick.t_ms) }),
        el("span", { class: tick.side > 0 || tick.side === "buy" ? "up" : tick.side < 0 || tick.side === "sell" ? "down" : "", text: price(tick.price, digits) }),
        el("span", { text: tick.size === null || tick.size === undefined ? "–" : count(tick.size) }))));
    },
  };
}

/** The symbols of the tape with their prices; `chosen(symbol)` on a click. */
export function watchCard(chosen) {
  const body = el("div", { class: "watch" });
  return {
    node: card("Symbols", body),
    async ask(current) {
      const { symbols, books } = await get("symbols", { limit: 40 });
      fill(body, symbols.map((one) => el("button", { type: "button", "aria-current": one.symbol === current ? "true" : null, on: { click: () => chosen(one.symbol) } },
        el("b", { text: one.symbol }), el("span", { text: price(one.price, decimals([one.price])) }),
        el("span", { class: one.change < 0 ? "down" : "up", text: percent(one.change_pct) }))));
      return { symbols, books };
    },
  };
}

/** Call the asks of the side in turn while the page is shown. */
export function watchSide(asks) {
  const stops = asks.map(([ms, ask]) => every(ms, ask));
  return () => stops.forEach((stop) => stop());
}
