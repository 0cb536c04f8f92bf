"use strict";
// Renders /openapi.json. Text goes in by textContent only, so nothing in the document can be markup.
const METHODS = ["get", "post", "put", "delete"];
const DEPTH_MAX = 6;
let doc;

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") node.addEventListener("click", value); else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function prose(text, name = "p") {  // `code` in backticks
  return el(name, {}, ...text.split(/`([^`]*)`/).map((part, i) => (i % 2 ? el("code", {}, part) : part)));
}
function resolve(schema) {
  if (!schema) return {};
  if (schema.$ref) return doc.components.schemas[schema.$ref.split("/").pop()];
  if (schema.anyOf) {
    const rest = schema.anyOf.map(resolve).filter((one) => one.type !== "null");
    const nullable = rest.length < schema.anyOf.length;
    if (rest.length === 1) return { ...rest[0], ...(schema.description ? { description: schema.description } : {}), nullable };
  }
  if (schema.allOf) return Object.assign({}, ...schema.allOf.map(resolve), schema);
  return schema;
}
function typeName(raw) {
  const schema = resolve(raw);
  let name = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type || "any";
  if (schema.enum) name = schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  else if (name === "array") name = `list of ${typeName(schema.items)}`;
  else if (schema.title && name === "object") name = schema.title;
  if (schema.format) name += `, ${schema.format}`;
  const low = schema.minLength ?? schema.minimum, high = schema.maxLength ?? schema.maximum;
  if (high !== undefined) name += schema.maxLength !== undefined ? `, ${low ?? 0} to ${high} characters` : `, ${low ?? ""} to ${high}`;
  if (schema.default !== undefined && schema.default !== null && typeof schema.default !== "object") name += `, default ${schema.default}`;
  return schema.nullable ? `${name} or null` : name;
}
function example(raw, depth = 0) {
  const schema = resolve(raw);
  if (depth > DEPTH_MAX) return null;
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "object" || schema.properties) {
    const found = {};
    for (const [name, one] of Object.entries(schema.properties || {})) {
      if (["createdAt", "updatedAt", "effectiveFrom"].includes(name) && schema.additionalProperties === false) continue;
      found[name] = example(one, depth + 1);
    }
    return found;
  }
  if (type === "array") return schema.items ? [example(schema.items, depth + 1)] : [];
  if (type === "integer" || type === "number") return schema.minimum ?? 0;
  if (type === "boolean") return schema.default ?? true;
  if (type === "string") return schema.format === "date-time" ? "2026-01-31T09:30:00.000Z" : "text";
  return null;
}
function required(raw) {  // an example request with what is needed, and what is usual
  const schema = resolve(raw), full = example(raw);
  if (!schema.properties) return full;
  const needed = new Set(schema.required || []);
  const keep = Object.keys(schema.properties).filter((name) => needed.has(name) || ["tenantId", "aggregation", "unit", "ts", "idempotencyKey", "billingAnchor"].includes(name));
  return Object.fromEntries(keep.map((name) => [name, Array.isArray(full[name]) && schema.properties[name].items ? [required(schema.properties[name].items)] : full[name]]));
}
function fields(raw, answer = false, depth = 0) {
  const schema = resolve(raw);
  const rows = [];
  for (const [name, one] of Object.entries(schema.properties || {})) {
    const inner = resolve(one), need = !answer && (schema.required || []).includes(name);
    rows.push(el("tr", {}, el("td", { style: `padding-left:${depth * 18}px` }, el("code", {}, name), need ? el("span", { class: "need" }, " needed") : null),
      el("td", {}, el("span", { class: "type" }, typeName(one)), inner.description && inner.type !== "object" ? prose(inner.description, "div") : null)));
    const below = inner.type === "array" ? resolve(inner.items) : inner;
    if (below.properties && depth < 3) rows.push(...fields(below, answer, depth + 1));
  }
  return rows;
}
function table(rows) { return el("table", {}, el("tbody", {}, ...rows)); }
function copyable(text) {
  const button = el("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { button.textContent = "press Ctrl+C"; getSelection().selectAllChildren(pre); }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  } }, "copy");
  const pre = el("pre", {}, text);
  return el("div", { class: "box" }, pre, button);
}
function curl(path, method, op) {
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => (name === "customerRef" ? "customer-42" : op.tags[0] === "admin" ? "key_0123456789abcdef" : "map_0123456789abcdef"));
  const samples = { tenantId: "acme", customerRef: "customer-42", metric: "api_calls", since: "-P7D" };
  const query = (op.parameters || []).filter((one) => one.in === "query" && (one.required || (one.name === "tenantId" && !op.requestBody && method === "get")))
    .map((one) => `${one.name}=${encodeURIComponent(samples[one.name] ?? example(one.schema))}`).join("&");
  const parts = [`curl -s ${method === "get" ? "" : `-X ${method.toUpperCase()} `}'${location.origin}${filled}${query ? "?" + query : ""}'`];
  if (op.security) parts.push("-H 'Authorization: Bearer YOUR_KEY'");
  if (op.requestBody) {
    const body = JSON.stringify(required(op.requestBody.content["application/json"].schema));
    parts.push("-H 'Content-Type: application/json'", `-d '${body.replaceAll("'", "'\\''")}'`);
  }
  return parts.join(" \\\n  ");
}
function operation(path, method, op) {
  const [about, scope] = (op.description || "").split(/\n*Needs scope /);
  const section = el("section", { class: "op", id: op.operationId },
    el("header", {}, el("span", { class: `method ${method.toUpperCase()}` }, method.toUpperCase()), el("code", {}, path),
      scope ? prose(`scope ${scope.replace(/,.*/s, "")}`, "span") : null),
    el("h3", {}, op.summary), about ? prose(about) : null);
  if (scope) section.querySelector("header").lastChild.className = "scope";
  if (op.parameters.length) section.append(el("details", { open: "" }, el("summary", {}, "Parameters"), table(op.parameters.map((one) =>
    el("tr", {}, el("td", {}, el("code", {}, one.name), el("span", { class: one.required ? "need" : "type" }, one.required ? " needed" : one.in === "query" ? "" : ` ${one.in}`)),
      el("td", {}, el("span", { class: "type" }, typeName(one.schema)), prose(one.description || "", "div")))))));
  if (op.requestBody) section.append(el("details", {}, el("summary", {}, "Request body"), table(fields(op.requestBody.content["application/json"].schema))));
  section.append(el("details", { open: "" }, el("summary", {}, "Try it"), copyable(curl(path, method, op))));
  for (const [status, response] of Object.entries(op.responses)) {
    const kind = Object.keys(response.content || {})[0];
    if (kind !== "application/json" || !Object.keys(response.content[kind].schema).length) continue;
    const schema = response.content[kind].schema;
    section.append(el("details", {}, el("summary", {}, `Answer ${status}`), copyable(JSON.stringify(example(schema), null, 2)), table(fields(schema, true))));
  }
  section.append(el("div", { class: "statuses" }, ...Object.entries(op.responses).map(([status, one]) => el("span", {}, el("b", {}, status), ` ${one.description}`))));
  return section;
}
function render(filter) {
  const index = document.getElementById("index"), content = document.getElementById("content");
  index.replaceChildren(); content.replaceChildren();
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const tag of doc.tags) {
    const found = [];
    for (const [path, methods] of Object.entries(doc.paths)) for (const method of METHODS) {
      const op = methods[method];
      if (!op || op.tags[0] !== tag.name) continue;
      const text = `${method} ${path} ${op.summary} ${op.description} ${op.operationId}`.toLowerCase();
      if (words.every((word) => text.includes(word))) found.push([path, method, op]);
    }
    if (!found.length) continue;
    shown += found.length;
    index.append(el("h2", {}, tag.name));
    content.append(el("div", { class: "tag" }, el("h2", {}, tag.name), prose(tag.description)));
    for (const [path, method, op] of found) {
      index.append(el("a", { href: `#${op.operationId}` }, el("span", { class: `method ${method.toUpperCase()}` }, method.toUpperCase()), path));
      content.append(operation(path, method, op));
    }
  }
  if (!shown) content.append(el("p", { class: "none" }, "No endpoint matches the filter."));
}
const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", dark ? "light" : "dark"); } catch { /* a private window: it holds until reload */ }
});
const filter = document.getElementById("filter");
filter.addEventListener("input", () => render(filter.value));
addEventListener("keydown", (event) => { if (event.key === "/" && document.activeElement !== filter) { event.preventDefault(); filter.focus(); } });
fetch("/openapi.json").then((response) => { if (!response.ok) throw new Error(`HTTP ${response.status}`); return response.json(); }).then((found) => {
  doc = found;
  document.getElementById("version").textContent = `version ${doc.info.version}, OpenAPI ${doc.openapi}`;
  document.getElementById("lead").textContent = doc.info.description;
  render("");
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}).catch((error) => { document.getElementById("lead").textContent = `/openapi.json could not be read: ${error.message}. Reload the page.`; });
