// The history: pages of older or newer bars for a window, one at a time, stitched to what came live meanwhile.

import { get } from "../api.js";

/** Milliseconds of an interval such as "5min"; null for one that is not of time. */
export function intervalMs(interval) {
  const found = /^(\d+)(ms|s|min|h|d)$/.exec(interval);
  return found ? Number(found[1]) * { ms: 1, s: 1000, min: 60_000, h: 3_600_000, d: 86_400_000 }[found[2]] : null;
}

const PAGE = 1500;

export class History {
  /** `window`: the bars; `late`: rows that came live while a page was under way, with their positions. */
  constructor(symbol, interval, window) {
    this.symbol = symbol;
    this.interval = interval;
    this.window = window;
    this.busy = false;
    this.late = [];
    this.closed = false;
  }

  /** Remember changed rows while a page is under way: the page may have been read before them. */
  note(position, bars) {
    if (this.busy) this.late.push([position, bars]);
  }

  async page(endMs, limit = PAGE) {
    const query = { symbol: this.symbol, interval: this.interval, limit, end_ms: endMs === null ? undefined : Math.floor(endMs) };
    return get("candles", query);
  }

  /** Run one fetch, if none is under way; returns what it returned, or null. */
  async alone(fetching) {
    if (this.busy || this.closed) return null;
    this.busy = true;
    this.late = [];
    try {
      const found = await fetching();
      if (this.closed) return null;
      for (const [position, bars] of this.late) if (!(position <= found.position)) this.window.change(bars);
      return found;
    } finally {
      this.busy = false;
      this.late = [];
    }
  }

  /** Fetch the bars before the window. Returns how many came. */
  older(limit = PAGE) {
    return this.alone(async () => {
      const page = await this.page(this.window.first, limit);
      if (!this.closed) page.added = this.window.addOlder(page);
      return page;
    });
  }

  /** Fetch the bars behind a window that was scrolled away from the newest. Ends at the newest: the window is live again. */
  newer(now) {
    return this.alone(async () => {
      const one = intervalMs(this.interval) ?? 60_000;
      const last = this.window.last;
      let from = last; // Up to here nothing is missing.
      let step = PAGE * one;
      for (;;) {
        const end = from + step + one;
        const open = end > now;
        const page = await this.page(open ? null : end);
        if (this.closed) return page;
        const fresh = page.bars.filter((row) => row[0] > from);
        if (fresh.length === page.bars.length && page.more && page.bars.length > 0 && (step > PAGE * one || open)) {
          // More than a page lies between: take a span that fits one.
          if (step > PAGE * one) { step = PAGE * one; continue; }
          const close = await this.page(from + step + one);
          const some = close.bars.filter((row) => row[0] > from);
          if (some.length === 0) { from += step; continue; }
          close.added = this.window.addNewer(some, close.gaps);
          return close;
        }
        if (fresh.length > 0 || open) {
          page.added = this.window.addNewer(fresh, page.gaps);
          if (open) { this.window.live = true; this.window.position = page.position; }
          return page;
        }
        from += step;
        step *= 2; // A weekend, a holiday: nothing there.
      }
    });
  }

  /** Look at another time: the window becomes the bars around it. */
  jump(t, now) {
    return this.alone(async () => {
      const one = intervalMs(this.interval) ?? 60_000;
      const end = t + (PAGE / 2) * one;
      const page = await this.page(end >= now ? null : end);
      if (!this.closed) this.window.replace(page, end >= now);
      return page;
    });
  }

  close() {
    this.closed = true;
  }
}
