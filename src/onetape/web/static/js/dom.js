// Elements, made without HTML text: whatever a symbol is called, it is shown as text.

/** Return an element. `props`: attributes; `class`, `text`, `data` (dataset), `on` (event → listener). Children: nodes or text. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "style") for (const [key, part] of Object.entries(value)) node.style.setProperty(key, part);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Put children in place of what a node holds. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

/** Set a text only where it changes, so that nothing is laid out for nothing. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A table: `columns` are [title, class]; `rows` are lists of text or nodes. */
export function table(caption, columns, rows, empty = "Nothing yet.") {
  if (rows.length === 0) return el("p", { class: "empty", text: empty });
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("caption", { class: "hidden", text: caption }),
      el("thead", {}, el("tr", {}, columns.map(([title, kind]) => el("th", { scope: "col", class: kind, text: title })))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, index) =>
        el("td", { class: columns[index][1] }, cell instanceof Node ? cell : String(cell ?? "–"))))))));
}

/** A list of facts: [name, value] pairs; a value is text or a node. */
export function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([name, value]) =>
    el("div", {}, el("dt", { text: name }), el("dd", {}, value instanceof Node ? value : String(value ?? "–")))));
}

/** A card: a titled section of a page. `size`: "wide" is a whole row, "two" two columns where there is room. */
export function card(title, body, props = {}) {
  const { size, note } = props;
  return el("section", { class: `card ${size ?? ""}` },
    el("header", {}, el("h2", { text: title }), note ? el("small", { text: note }) : null), body);
}
