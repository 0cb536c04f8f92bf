// Renders /openapi.json: an index, a search, one part per operation that opens when it is asked for, and deep links.
import { copyable, el, inline, path as broken, prose } from "./elements.js";
import { component, fieldTable, typeName, use, words } from "./schema.js";
import { tryIt } from "./try.js";

const METHODS = ["get", "post", "put", "delete"];
const by = (id) => document.getElementById(id);
let doc;
const parts = new Map();  // operationId to {section, entry, text, tag}

function parameterTable(parameters) {
  return el("table", {}, el("tbody", {}, ...parameters.map((one) => el("tr", {},
    el("td", {}, el("code", {}, one.name), one.required ? el("span", { class: "mark need" }, " needed") : null, one.in === "query" ? null : el("span", { class: "mark" }, ` ${one.in}`)),
    el("td", {}, el("span", { class: "type" }, typeName(one.schema), one.schema.default === undefined ? "" : `, default ${one.schema.default}`), el("div", {}, ...inline(one.description)))))));
}

function exampleBoxes(examples) {
  return Object.values(examples || {}).map((one) => el("figure", {}, el("figcaption", {}, one.summary || "Example"),
    copyable(typeof one.value === "string" ? one.value : JSON.stringify(one.value, null, 2), one.summary || "example")));
}

function answer(status, raw) {
  const response = raw.$ref ? component(raw.$ref) : raw;
  const [title, ...rest] = response.description.split(/\. (?=[A-Z])/);
  const nodes = prose(rest.join(". "));
  const headers = Object.entries(response.headers || {}).filter(([name]) => name !== "X-Request-Id");
  if (headers.length) {
    nodes.push(el("p", {}, "Headers: ", ...headers.flatMap(([name, one], i) => [i ? ", " : "", el("code", {}, name), ` (${(one.$ref ? component(one.$ref) : one).description.replace(/\.$/, "")})`]), "."));
  }
  for (const [kind, media] of Object.entries(response.content || {})) {
    nodes.push(el("p", { class: "type" }, kind), ...exampleBoxes(media.examples));
    const table = kind === "application/problem+json" ? null : fieldTable(media.schema, true);
    if (table) nodes.push(table);
  }
  const kind = status < 300 ? "good" : status < 400 ? "" : "bad";
  return el("details", {}, el("summary", {}, el("b", { class: kind }, status), ` ${title}`), ...nodes);
}

function body(path, method, op) {
  const [about] = op.description.split(/\n*Needs scope /);
  const nodes = [...prose(about)];
  if (op["x-scope"]) nodes.push(el("p", { class: "scope" }, "Needs the scope ", el("code", {}, op["x-scope"]), ", where API keys are on."));
  if (op.parameters.length) nodes.push(el("details", { open: true }, el("summary", {}, "Parameters"), parameterTable(op.parameters)));
  if (op.requestBody) {
    for (const [kind, media] of Object.entries(op.requestBody.content)) {
      const boxes = exampleBoxes(media.examples), table = fieldTable(media.schema, false);
      if (boxes.length || table) nodes.push(el("details", { open: kind === "application/json" }, el("summary", {}, `Request body, ${kind}`), table, ...boxes));
    }
  }
  nodes.push(el("details", { class: "trying" }, el("summary", {}, "Try it"), tryIt(path, method, op, by("key"))));
  nodes.push(el("h4", {}, "Answers"), ...Object.entries(op.responses).map(([status, one]) => answer(status, one)));
  return nodes;
}

function searchText(path, method, op) {
  const found = [method, path, op.summary, op.description, op.operationId, op.tags[0], op["x-scope"] || ""];
  for (const one of op.parameters) found.push(one.name, one.description);
  for (const media of Object.values(op.requestBody?.content || {})) found.push(...words(media.schema));
  for (const raw of Object.values(op.responses)) for (const media of Object.values(raw.content || {})) found.push(...words(media.schema));
  return found.join(" ").toLowerCase();
}

function operation(path, method, op) {
  const name = el("span", { class: `method ${method}` }, method.toUpperCase());
  const section = el("details", { class: "op", id: op.operationId },
    el("summary", {}, name, el("code", { class: "path" }, ...broken(path)), el("span", { class: "what" }, op.summary)));
  const fill = () => {
    if (section.children.length > 1) return;
    const link = el("a", { href: `#${op.operationId}`, class: "link" }, `#${op.operationId}`);
    section.append(el("div", { class: "inside" }, el("p", {}, link), ...body(path, method, op)));
  };
  section.addEventListener("toggle", () => { if (section.open) fill(); });
  const entry = el("a", { href: `#${op.operationId}` }, name.cloneNode(true), el("span", {}, ...broken(path)));
  parts.set(op.operationId, { section, entry, fill, text: searchText(path, method, op) });
  return { section, entry };
}

// A number that a double would write otherwise (220.00) stays as it is written, where the browser can.
function exact(_name, value, context) {
  const changed = typeof value === "number" && context?.source !== undefined && context.source !== String(value);
  return changed && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function draw() {
  for (const tag of doc.tags) {
    const found = [];
    for (const [path, methods] of Object.entries(doc.paths)) {
      for (const method of METHODS) if (methods[method]?.tags[0] === tag.name) found.push(operation(path, method, methods[method]));
    }
    if (!found.length) continue;
    by("index").append(el("section", { class: "group" }, el("h2", {}, tag.name), ...found.map((one) => one.entry)));
    by("content").append(el("section", { class: "tag" }, el("h2", {}, tag.name), ...prose(tag.description), ...found.map((one) => one.section)));
  }
}

function search() {
  const wanted = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { section, entry, text } of parts.values()) {
    const fits = wanted.every((word) => text.includes(word));
    section.hidden = entry.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  for (const group of document.querySelectorAll(".tag, .group")) group.hidden = !group.querySelector(".op:not([hidden]), a:not([hidden])");
  by("lead").hidden = wanted.length > 0;
  by("count").textContent = wanted.length ? (shown ? `${shown} of ${parts.size} endpoints` : "No endpoint has all of these words.") : "";
}

function open() {
  const part = parts.get(decodeURIComponent(location.hash.slice(1)));
  if (!part) return;
  if (part.section.hidden) { by("filter").value = ""; search(); }
  part.fill();
  part.section.open = true;
  part.section.scrollIntoView();
  part.section.querySelector("summary").focus({ preventScroll: true });
  for (const one of document.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
  part.entry.setAttribute("aria-current", "true");
}

by("filter").addEventListener("input", search);
by("holder").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", open);
by("index").addEventListener("click", (event) => {  // a link to where one is already opens it again
  const link = event.target.closest("a");
  if (link && link.hash === location.hash) open();
});
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); by("filter").focus(); }
  if (event.key === "Escape" && document.activeElement === by("filter")) { by("filter").value = ""; search(); }
});
if (matchMedia("(max-width: 820px)").matches) by("contents").open = false;

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  doc = JSON.parse(await response.text(), exact);
  use(doc);
  by("version").textContent = `version ${doc.info.version}, OpenAPI ${doc.openapi}`;
  by("lead").replaceChildren(...prose(doc.info.description), el("p", {}, "The same for machines: ", el("a", { href: "/openapi.json" }, "/openapi.json"), "."));
  draw();
  open();
  document.documentElement.dataset.ready = "";
} catch (error) {
  by("lead").replaceChildren(el("p", {}, `/openapi.json could not be read: ${error.message}. Reload the page.`));
}
