// The candles: the chart library drawn from a window, moved without jumps when bars come in before or behind.

import { GapShades } from "./gaps.js";
import { mark, ZonedScale } from "./scale.js";
import { decimals, stamp } from "../format.js";

const { CandlestickSeries, HistogramSeries, createChartEx, createSeriesMarkers, CrosshairMode } = window.LightweightCharts;

/** The colours of the page's theme, read from its style sheet. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    back: of("surface"), text: of("text-2"), line: of("grid"), edge: of("line"), up: of("up"), down: of("down"),
    upFaint: of("up-faint"), downFaint: of("down-faint"), mark: of("accent"), label: of("label"),
    gaps: { missing: of("gap"), inferred: of("gap-faint"), pruned: of("gap-faint"), edge: of("gap-edge") },
  };
}

const candle = ([t, open, high, low, close]) => ({ time: t / 1000, open, high, low, close });

export class Candles {
  constructor(node, window_) {
    this.window = window_;
    this.colors = palette();
    this.digits = 2;
    this.markedAt = "";
    this.chart = createChartEx(node, new ZonedScale(), {
      autoSize: true,
      layout: { attributionLogo: false, fontFamily: getComputedStyle(document.body).fontFamily, fontSize: 11 },
      crosshair: { mode: CrosshairMode.Normal },
      rightPriceScale: { borderVisible: false, scaleMargins: { top: 0.08, bottom: 0.08 } },
      timeScale: { borderVisible: false, timeVisible: true, secondsVisible: true, rightOffset: 4, minBarSpacing: 0.6, tickMarkFormatter: mark },
      localization: { timeFormatter: (seconds) => stamp(seconds * 1000) },
      kineticScroll: matchMedia("(prefers-reduced-motion: reduce)").matches ? { touch: false, mouse: false } : { touch: true, mouse: false },
    });
    this.bars = this.chart.addSeries(CandlestickSeries, { borderVisible: false });
    this.volume = this.chart.addSeries(HistogramSeries, { priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false }, 1);
    this.chart.panes()[1].setStretchFactor(0.22);
    this.chart.panes()[0].setStretchFactor(1);
    this.shades = new GapShades(window_, this.colors.gaps);
    this.bars.attachPrimitive(this.shades);
    this.marks = createSeriesMarkers(this.bars, []);
    this.paint();
  }

  /** Take the theme's colours on. */
  paint() {
    const colors = palette();
    this.colors = colors;
    this.shades.colors = colors.gaps;
    this.chart.applyOptions({
      layout: { background: { color: colors.back }, textColor: colors.text, panes: { separatorColor: colors.line, separatorHoverColor: colors.edge } },
      grid: { vertLines: { color: colors.line }, horzLines: { color: colors.line } },
      crosshair: { vertLine: { color: colors.edge, labelBackgroundColor: colors.label }, horzLine: { color: colors.edge, labelBackgroundColor: colors.label } },
    });
    this.bars.applyOptions({ upColor: colors.up, downColor: colors.down, wickUpColor: colors.up, wickDownColor: colors.down });
    this.markedAt = "";
    if (this.window.rows.length) this.draw();
  }

  bar(row) {
    return { time: row[0] / 1000, value: row[5] ?? 0, color: row[4] >= row[1] ? this.colors.upFaint : this.colors.downFaint };
  }

  /** Draw the whole window; `anchor` (ms) stays where it is on the screen. */
  draw(anchor = null) {
    const scale = this.chart.timeScale();
    const { rows } = this.window;
    const range = anchor === null ? null : scale.getVisibleLogicalRange();
    this.fitDigits(rows);
    this.bars.setData(rows.map(candle));
    this.volume.setData(rows.map((row) => this.bar(row)));
    this.mark();
    if (range && anchor.to !== anchor.from) scale.setVisibleLogicalRange({ from: range.from + anchor.to - anchor.from, to: range.to + anchor.to - anchor.from });
  }

  /** Draw changed rows. */
  update({ tail, whole }) {
    if (whole) { this.draw(); return; }
    const last = this.drawn;
    for (const row of tail) {
      const older = last !== undefined && row[0] < last;
      this.bars.update(candle(row), older);
      this.volume.update(this.bar(row), older);
    }
    this.fitDigits(tail);
    this.mark();
  }

  get drawn() {
    const at = this.bars.data().at(-1);
    return at === undefined ? undefined : at.time * 1000;
  }

  /** Mark bars that a late tick or a correction changed. */
  mark() {
    const { rows, revised } = this.window;
    const times = rows.filter((row) => row[6] > 0 || revised.has(row[0])).map((row) => row[0]);
    const key = `${times.length} ${times[0]} ${times.at(-1)}`;
    if (key !== this.markedAt) {
      this.marks.setMarkers(times.map((t) => ({ time: t / 1000, position: "aboveBar", shape: "circle", color: this.colors.mark, size: 0.6 })));
      this.markedAt = key;
    }
    this.marked = times;
  }

  fitDigits(rows) {
    const digits = Math.max(this.digits, decimals(rows.slice(-300).flatMap((row) => [row[1], row[4]])));
    if (digits === this.digits && this.fitted) return;
    this.digits = digits;
    this.fitted = true;
    this.bars.applyOptions({ priceFormat: { type: "price", precision: digits, minMove: 10 ** -digits } });
  }

  close() {
    this.chart.remove();
  }
}
