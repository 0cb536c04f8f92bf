// A form that sends a request of an operation to this server, and shows what it answered; and the same as a command.
import { copyable, el, indented } from "./elements.js";
import { fallback, resolve } from "./schema.js";

const CHARS_SHOWN_MAX = 200000;
const SECONDS_MAX = 60;
const FORBIDDEN = ["host", "content-length"];

function quoted(text) { return `'${text.replaceAll("'", "'\\''")}'`; }

function inputOf(parameter, id) {
  const schema = resolve(parameter.schema);
  const attributes = { id, name: parameter.name, "data-in": parameter.in, "aria-required": String(parameter.required) };
  if (schema.enum) {
    const chosen = parameter.in === "path" ? parameter.example ?? schema.enum[0] : "";
    const options = schema.enum.map((one) => el("option", { value: one, selected: one === chosen }, String(one)));
    if (parameter.in !== "path") options.unshift(el("option", { value: "" }, schema.default === undefined ? "" : `(${schema.default})`));
    return el("select", attributes, ...options);
  }
  const example = parameter.example ?? (schema.examples || [])[0];
  const prefilled = parameter.required || parameter.name === "tenantId" ? example ?? (parameter.name === "tenantId" ? "acme" : "") : "";
  return el("input", { ...attributes, value: prefilled, placeholder: example ?? schema.default ?? "", autocomplete: "off", spellcheck: "false" });
}

function filled(form, where) {
  return [...form.querySelectorAll(`[data-in=${where}]`)].filter((one) => one.value !== "").map((one) => [one.name, one.value]);
}

function asked(form, path, method, key) {
  let url = path;
  for (const one of form.querySelectorAll("[data-in=path]")) url = url.replace(`{${one.name}}`, encodeURIComponent(one.value));
  const query = new URLSearchParams(filled(form, "query")).toString();
  const headers = Object.fromEntries(filled(form, "header").filter(([name]) => !FORBIDDEN.includes(name.toLowerCase())));
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = form.querySelector("textarea");
  if (body) headers["Content-Type"] = form.querySelector("[data-kind]").value;
  return { url: query ? `${url}?${query}` : url, method: method.toUpperCase(), headers, body: body ? body.value : undefined };
}

function command(request) {
  const parts = [`curl -s ${request.method === "GET" ? "" : `-X ${request.method} `}${quoted(location.origin + request.url)}`];
  for (const [name, value] of Object.entries(request.headers)) {
    parts.push(`-H ${quoted(name === "Authorization" ? "Authorization: Bearer YOUR_KEY" : `${name}: ${value}`)}`);
  }
  if (request.body !== undefined) parts.push(`-d ${quoted(request.body)}`);
  return parts.join(" \\\n  ");
}

async function send(request, output) {
  output.replaceChildren(el("p", {}, "Waiting for the answer…"));
  const began = performance.now();
  const ending = new AbortController();
  const timer = setTimeout(() => ending.abort(), SECONDS_MAX * 1000);
  try {
    const response = await fetch(request.url, { method: request.method, headers: request.headers, body: request.body, signal: ending.signal, credentials: "omit", cache: "no-store" });
    const text = await response.text();
    const kind = response.headers.get("content-type") || "";
    const shown = (/json$|json;/.test(kind) && !kind.includes("ndjson") ? indented(text) : text).slice(0, CHARS_SHOWN_MAX);
    const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    output.replaceChildren(
      el("p", { class: response.ok ? "good" : "bad" }, el("b", {}, `${response.status} ${response.statusText}`), ` in ${Math.round(performance.now() - began)} ms`),
      el("details", {}, el("summary", {}, "Headers"), copyable(headers, "headers of the answer")),
      text ? copyable(shown, "the answer") : el("p", {}, "No body."));
  } catch (error) {
    const why = error.name === "AbortError" ? `no answer within ${SECONDS_MAX} s` : error.message;
    output.replaceChildren(el("p", { class: "bad" }, `Not answered: ${why}.`));
  } finally { clearTimeout(timer); }
}

function bodyFields(op, id) {
  if (!op.requestBody) return { nodes: [], onexample: () => {} };
  const content = op.requestBody.content, kinds = Object.keys(content);
  const kind = el("select", { id: `${id}-kind`, "data-kind": "", "aria-label": "Content-Type" }, ...kinds.map((one) => el("option", { value: one }, one)));
  const area = el("textarea", { id: `${id}-body`, rows: "8", spellcheck: "false" });
  const choice = el("select", { id: `${id}-example` });
  const bodyOf = (one) => (one === undefined ? fallback(content[kind.value].schema) : one.value);
  const show = () => {
    const found = Object.values(content[kind.value].examples || {})[choice.selectedIndex];
    area.value = JSON.stringify(bodyOf(found), null, 2) ?? "";
    area.rows = Math.min(24, area.value.split("\n").length + 1);
  };
  const list = () => {
    const found = Object.values(content[kind.value].examples || {});
    choice.replaceChildren(...(found.length ? found : [{ summary: "what is needed" }]).map((one) => el("option", {}, one.summary)));
    show();
  };
  kind.addEventListener("change", list);
  choice.addEventListener("change", show);
  list();
  const nodes = [el("div", { class: "pair" },
    el("label", { for: choice.id }, "Example", choice),
    kinds.length > 1 ? el("label", { for: kind.id }, "Content-Type", kind) : el("span", { hidden: true }, kind)),
  el("label", { for: area.id }, "Body", area)];
  return { nodes };
}

// `key` is the field that holds the API key.
export function tryIt(path, method, op, key) {
  const held = () => (op.security ? key.value.trim() : "");
  const needsKey = op.security && !op.security.some((one) => !Object.keys(one).length);
  const id = `try-${op.operationId}`;
  const fields = op.parameters.filter((one) => one.in !== "header" || !["If-None-Match"].includes(one.name)).map((one) =>
    el("label", { for: `${id}-${one.name}` }, el("span", {}, el("code", {}, one.name), one.required ? el("span", { class: "mark need" }, " needed") : null, one.in === "query" ? null : el("span", { class: "mark" }, ` ${one.in}`)), inputOf(one, `${id}-${one.name}`)));
  const output = el("div", { class: "output", role: "status", "aria-label": "The answer" });
  const shell = copyable("", "the command");
  const button = el("button", { type: "submit", class: "send" }, `Send ${method.toUpperCase()}`);
  const form = el("form", { class: "try", "aria-label": `Try ${op.operationId}` },
    fields.length ? el("div", { class: "inputs" }, ...fields) : null, ...bodyFields(op, id).nodes, el("div", { class: "sending" }, button), output,
    el("details", { open: true }, el("summary", {}, "As a command"), shell));
  const refresh = () => { shell.querySelector("pre").textContent = command(asked(form, path, method, held() || (needsKey ? "needed" : ""))); };
  form.addEventListener("input", refresh);
  form.addEventListener("change", refresh);
  key.addEventListener("input", refresh);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    await send(asked(form, path, method, held()), output);
    button.disabled = false;
  });
  refresh();
  return form;
}
