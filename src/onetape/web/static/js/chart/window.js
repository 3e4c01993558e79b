// The window: the stretch of a symbol's bars that the page holds, ascending, without doubles, of bounded length.
// A row is [t_ms, open, high, low, close, volume, revision, complete], as the API gives it.

const T = 0;

/** The index of the first row at or behind a time. */
export function indexAt(rows, t) {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][T] < t) low = middle + 1;
    else high = middle;
  }
  return low;
}

export class BarWindow {
  constructor() {
    this.rows = [];
    this.gaps = [];
    this.revised = new Set();
    this.more = true; // Whether there are older bars than the window's.
    this.live = true; // Whether the window reaches up to the newest bar.
    this.position = null; // The tape's position up to which the rows are right.
  }

  get first() { return this.rows[0]?.[T] ?? null; }
  get last() { return this.rows.at(-1)?.[T] ?? null; }

  /** Start anew from a page. */
  replace(page, live) {
    this.rows = page.bars.slice();
    this.gaps = [];
    this.addGaps(page.gaps);
    this.more = page.more ?? true;
    this.live = live;
    this.position = page.position ?? null;
  }

  /** Put older bars before the window's. */
  addOlder(page) {
    const own = this.first ?? Infinity;
    const fresh = page.bars.filter((row) => row[T] < own);
    this.rows = fresh.concat(this.rows);
    this.addGaps(page.gaps);
    this.more = Boolean(page.more) && fresh.length > 0;
    return fresh.length;
  }

  /** Put newer bars behind the window's. */
  addNewer(bars, gaps) {
    const own = this.last ?? -Infinity;
    const fresh = bars.filter((row) => row[T] > own);
    this.rows = this.rows.concat(fresh);
    this.addGaps(gaps);
    return fresh.length;
  }

  /** Take changed bars in. Returns {tail: rows to update in order, whole: whether older ones came in between}. */
  change(bars, revised = []) {
    let whole = false;
    const tail = [];
    for (const t of revised) if (this.first === null || t >= this.first) this.revised.add(t);
    for (const row of bars) {
      const at = indexAt(this.rows, row[T]);
      if (row[1] === null) { // All of its trades were taken back.
        if (this.rows[at]?.[T] === row[T]) { this.rows.splice(at, 1); whole = true; }
      } else if (this.rows[at]?.[T] === row[T]) {
        this.rows[at] = row;
        tail.push(row);
      } else if (at === this.rows.length) {
        if (!this.live) continue; // Behind a window that was scrolled away: it is fetched when it is scrolled to.
        this.rows.push(row);
        tail.push(row);
      } else if (at > 0 || !this.more) {
        this.rows.splice(at, 0, row);
        whole = true;
      }
    }
    return { tail: tail.sort((a, b) => a[T] - b[T]), whole };
  }

  /** Keep at most `most` rows around index `middle`; what is dropped is fetched again when it is needed. */
  trim(most, middle) {
    const spare = this.rows.length - most;
    if (spare <= 0) return 0;
    const before = Math.min(spare, Math.max(0, Math.floor(middle - most / 2)));
    const behind = spare - before;
    if (before > 0) this.more = true;
    if (behind > 0) this.live = false;
    this.rows = this.rows.slice(before, this.rows.length - behind);
    this.revised = new Set([...this.revised].filter((t) => t >= this.first && t <= this.last));
    this.gaps = this.gaps.filter(([start, end]) => end > this.first && (this.live || start < this.last));
    return before;
  }

  /** Take over what is known now of gaps from a time on: what was a gap may be filled. */
  renewGaps(page) {
    const since = page.bars[0]?.[T];
    if (since === undefined) return;
    this.gaps = this.gaps.filter(([, end]) => end <= since);
    this.addGaps(page.gaps);
  }

  addGaps(gaps = []) {
    const known = new Set(this.gaps.map(([start, , kind]) => `${start} ${kind}`));
    this.gaps.push(...gaps.filter(([start, , kind]) => !known.has(`${start} ${kind}`)));
    this.gaps.sort((a, b) => a[0] - b[0]);
  }
}
