// Elements of the page, and text as it is shown. Text goes in by textContent alone, so nothing in the document or in an
// answer can be markup.

export function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function inline(text) {  // `code` in backticks
  return text.split(/`([^`]*)`/).map((part, i) => (i % 2 ? el("code", {}, part) : part));
}

export function path(text) {  // lines break after a slash
  return text.split(/(?<=\/)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

export function prose(text) {  // paragraphs
  return text.split(/\n\n+/).filter(Boolean).map((part) => el("p", {}, ...inline(part)));
}

export function copyable(text, label) {
  const pre = el("pre", { tabindex: "0", "aria-label": label }, text);
  const button = el("button", { type: "button", "aria-label": `Copy ${label}`, onclick: async () => {
    try { await navigator.clipboard.writeText(pre.textContent); button.textContent = "copied"; }
    catch { button.textContent = "press Ctrl+C"; getSelection().selectAllChildren(pre); }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  } }, "copy");
  return el("div", { class: "box" }, pre, button);
}

// JSON text with line breaks, its numbers as they are written: reading them would round those that doubles can't hold.
export function indented(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g) || [];
  const out = [];
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  tokens.forEach((token, i) => {
    if (token === "{" || token === "[") {
      const empty = tokens[i + 1] === "}" || tokens[i + 1] === "]";
      if (!empty) depth += 1;
      out.push(token, empty ? "" : line());
    } else if (token === "}" || token === "]") {
      const empty = tokens[i - 1] === "{" || tokens[i - 1] === "[";
      if (!empty) { depth -= 1; out.push(line()); }
      out.push(token);
    } else if (token === ",") out.push(token, line());
    else if (token === ":") out.push(": ");
    else out.push(token);
  });
  return out.join("");
}
