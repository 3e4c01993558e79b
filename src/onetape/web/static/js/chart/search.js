// The symbol search: a combobox over the symbols of the tape.

import { get } from "../api.js";
import { el, fill } from "../dom.js";
import { decimals, percent, price } from "../format.js";

let next = 0;

/** Return {node, input}. `chosen(symbol)` is called when one is picked. */
export function symbolSearch(symbol, chosen) {
  const id = `symbols-${(next += 1)}`;
  let found = [];
  let at = -1;
  let asked = 0;
  const list = el("ul", { id, role: "listbox", class: "found", "aria-label": "Symbols", hidden: true });
  const input = el("input", {
    class: "symbol", type: "search", role: "combobox", "aria-label": "Symbol", "aria-expanded": "false", "aria-controls": id,
    "aria-autocomplete": "list", autocomplete: "off", autocapitalize: "characters", spellcheck: "false", placeholder: "Symbol  /", maxlength: "100",
  });
  input.value = symbol ?? "";

  const show = (open) => {
    list.hidden = !open;
    input.setAttribute("aria-expanded", String(open));
    if (!open) input.removeAttribute("aria-activedescendant");
  };
  const point = (index) => {
    at = found.length === 0 ? -1 : (index + found.length) % found.length;
    [...list.children].forEach((item, here) => item.setAttribute("aria-selected", String(here === at)));
    if (at >= 0) {
      input.setAttribute("aria-activedescendant", `${id}-${at}`);
      list.children[at].scrollIntoView({ block: "nearest" });
    }
  };
  const pick = (name) => {
    input.value = name;
    show(false);
    input.blur();
    chosen(name);
  };
  const look = async () => {
    const mine = (asked += 1);
    let symbols = [];
    try { ({ symbols } = await get("symbols", { q: input.value.trim(), limit: 30 })); } catch { /* told by the connection's state */ }
    if (mine !== asked || document.activeElement !== input) return;
    found = symbols;
    fill(list, found.length === 0 ? el("li", { class: "none", text: "No such symbol on the tape." }) : found.map((one, index) =>
      el("li", { id: `${id}-${index}`, role: "option", "aria-selected": "false", on: { pointerdown: (event) => { event.preventDefault(); pick(one.symbol); } } },
        el("b", { text: one.symbol }), el("span", { text: price(one.price, decimals([one.price])) }),
        el("span", { class: one.change < 0 ? "down" : "up", text: percent(one.change_pct) }))));
    show(true);
    point(0);
  };
  input.addEventListener("input", look);
  input.addEventListener("focus", () => { input.select(); look(); });
  input.addEventListener("blur", () => { show(false); if (!input.value) input.value = symbol ?? ""; });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") point(at + 1);
    else if (event.key === "ArrowUp") point(at - 1);
    else if (event.key === "Enter" && at >= 0 && !list.hidden) pick(found[at].symbol);
    else if (event.key === "Escape") { input.value = symbol ?? ""; input.blur(); }
    else return;
    event.preventDefault();
  });
  return { node: el("div", { class: "search" }, input, list), input, name: (value) => { symbol = value; input.value = value; } };
}
