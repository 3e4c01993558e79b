// Shades of gaps on the chart: where the tape says that something is missing, the chart says it too.

import { indexAt } from "./window.js";

const FRESH_MS = 5000;

class Shades {
  constructor(owner) { this.owner = owner; }

  draw(target) {
    const { bands, colors } = this.owner;
    if (bands.length === 0) return;
    target.useBitmapCoordinateSpace(({ context, bitmapSize, horizontalPixelRatio: ratio }) => {
      for (const [left, right, kind] of bands) {
        const x = Math.round(left * ratio);
        const width = Math.max(Math.round((right - left) * ratio), Math.round(4 * ratio));
        context.fillStyle = colors[kind] ?? colors.missing;
        context.fillRect(x, 0, width, bitmapSize.height);
        context.fillStyle = colors.edge;
        context.fillRect(x, 0, width, Math.max(2, Math.round(2 * ratio)));
      }
    });
  }
}

class Pane {
  constructor(owner) { this.renderer_ = new Shades(owner); }
  zOrder() { return "bottom"; }
  renderer() { return this.renderer_; }
}

/** A primitive of the chart library that shades `window.gaps`. Bars stand side by side, so a span without bars is a seam. */
export class GapShades {
  constructor(window, colors) {
    this.window = window;
    this.colors = colors;
    this.bands = [];
    this.views = [new Pane(this)];
  }

  attached({ chart, requestUpdate }) {
    this.chart = chart;
    this.requestUpdate = requestUpdate;
  }

  updateAllViews() {
    const { rows, gaps } = this.window;
    const scale = this.chart.timeScale();
    const visible = scale.getVisibleLogicalRange();
    this.bands = [];
    if (!visible || rows.length === 0) return;
    const fresh = Date.now() - FRESH_MS;
    for (const [start, end, kind] of gaps) {
      if (end > fresh && end - start < FRESH_MS) continue; // The source's next word is under way.
      const before = indexAt(rows, start + 1) - 1; // The last bar at or before its start.
      const behind = indexAt(rows, end);
      if (behind < visible.from - 1 || before > visible.to + 1 || behind <= 0) continue;
      const left = scale.logicalToCoordinate(Math.max(before, -1));
      const right = scale.logicalToCoordinate(Math.max(behind, before + 1));
      if (left === null || right === null) continue;
      const last = this.bands.at(-1);
      if (last && last[2] === kind && left < last[1]) last[1] = Math.max(last[1], right);
      else this.bands.push([left, right, kind]);
    }
  }

  paneViews() { return this.views; }

  /** The gap that lies at a time or right behind the bar of it, or null. */
  at(t, next) {
    return this.window.gaps.find(([start, end]) => start < (next ?? t + 1) && end > t) ?? null;
  }
}
