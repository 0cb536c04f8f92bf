// What a JSON Schema of the document says, in words: types, bounds, fields.
import { el, inline } from "./elements.js";

const DEPTH_MAX = 4;
const PLAIN_TEXT = "^[^\\u0000]*$";
let components = {};

export function use(doc) { components = doc.components; }

export function component(reference) {
  return reference.split("/").slice(2).reduce((found, name) => found[name], components);
}

// The schema with references and "or null" resolved.
export function resolve(schema) {
  if (!schema) return {};
  if (schema.$ref) return { ...component(schema.$ref), ...(schema.description ? { description: schema.description } : {}) };
  if (!schema.anyOf) return schema;
  const rest = schema.anyOf.filter((one) => one.type !== "null");
  const nullable = rest.length < schema.anyOf.length;
  if (rest.length !== 1) return { ...schema, anyOf: rest, nullable };
  const inner = resolve(rest[0]);
  return { ...inner, ...(schema.description ? { description: schema.description } : {}), nullable };
}

export function typeName(raw, depth = 0) {
  const schema = resolve(raw);
  let name = kindOf(schema, depth);
  const or = schema.nullable || (Array.isArray(schema.type) && schema.type.includes("null"));
  if (or && !name.includes("null")) name += " or null";
  return name;
}

function kindOf(schema, depth) {
  if (schema.anyOf) return [...new Set(schema.anyOf.map((one) => typeName(one, depth)))].join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const kinds = (Array.isArray(schema.type) ? schema.type : [schema.type || "anything"]).filter((one) => one !== "null");
  if (kinds.includes("number") && kinds.includes("string")) return "decimal, as number or string";
  if (kinds.includes("integer") && kinds.includes("string")) return "whole number, as number or string";
  let name = kinds.join(" or ");
  if (name === "array") return depth > DEPTH_MAX ? "list" : `list of ${typeName(schema.items || {}, depth + 1)}${span(schema.minItems, schema.maxItems, "items")}`;
  if (name === "object" && schema.title) name = schema.title;
  if (name === "object" && schema.additionalProperties && schema.additionalProperties !== true) name = `map of ${typeName(schema.additionalProperties, depth + 1)}`;
  if (name === "string") name = "text";
  if (schema.format === "date-time") name = "instant, ISO 8601";
  else if (schema.format === "date") name = "day, YYYY-MM-DD";
  else if (schema.format) name += `, ${schema.format}`;
  name += span(schema.minLength, schema.maxLength, "characters") + span(schema.minimum, schema.maximum, "");
  if (schema.pattern && schema.pattern !== PLAIN_TEXT) name += patternName(schema.pattern);
  return name;
}

function patternName(pattern) {
  if (pattern.startsWith("^[+-]P")) return ", signed duration such as -PT24H";
  if (pattern === "^[A-Za-z]{3}$") return ", three letters";
  if (pattern.includes("[0-9]{4}-(0[1-9]|1[0-2])")) return ", month YYYY-MM";
  return `, like ${pattern}`;
}

function span(low, high, unit) {
  if (low === undefined && high === undefined) return "";
  const end = unit ? ` ${unit}` : "";
  if (high === undefined) return low ? `, at least ${low}${end}` : "";
  return low === undefined ? `, at most ${high}${end}` : `, ${low} to ${high}${end}`;
}

export function fallback(raw, depth = 0) {  // an example of what has none recorded
  const schema = resolve(raw);
  if (depth > DEPTH_MAX) return null;
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return fallback(schema.anyOf[0], depth + 1);
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (schema.properties) {
    const needed = schema.required || [];
    return Object.fromEntries(needed.map((name) => [name, fallback(schema.properties[name], depth + 1)]));
  }
  if (type === "array") return schema.items ? [fallback(schema.items, depth + 1)] : [];
  if (type === "integer" || type === "number") return schema.minimum ?? 0;
  if (type === "boolean") return true;
  return type === "string" ? "text" : null;
}

// Rows of a table of fields: those of an object, and of the objects within.
export function fieldRows(raw, isAnswer, depth = 0) {
  const schema = resolve(raw);
  const rows = [];
  for (const [name, one] of Object.entries(schema.properties || {})) {
    const inner = resolve(one);
    const needed = (schema.required || []).includes(name);
    const mark = isAnswer ? (needed ? null : el("span", { class: "mark" }, " not always")) : needed ? el("span", { class: "mark need" }, " needed") : null;
    const more = [];
    if (inner.default !== undefined && inner.default !== null && typeof inner.default !== "object" && !isAnswer) more.push(`, default ${inner.default}`);
    const text = one.description || inner.description;
    rows.push(el("tr", {},
      el("td", { class: `depth${depth}` }, el("code", {}, name), mark),
      el("td", {}, el("span", { class: "type" }, typeName(one), ...more), text ? el("div", {}, ...inline(text)) : null)));
    const below = inner.type === "array" ? resolve(inner.items) : inner.anyOf ? resolve(inner.anyOf.find((choice) => resolve(choice).properties)) : inner;
    if (below.properties && depth < DEPTH_MAX - 1) rows.push(...fieldRows(below, isAnswer, depth + 1));
  }
  return rows;
}

export function fieldTable(raw, isAnswer) {
  let schema = resolve(raw);
  if (schema.type === "array") schema = resolve(schema.items);
  const rows = fieldRows(schema, isAnswer);
  return rows.length ? el("table", {}, el("tbody", {}, ...rows)) : null;
}

export function words(raw, depth = 0) {  // what a search of a body looks through: names of fields
  const schema = resolve(raw);
  if (depth > DEPTH_MAX) return [];
  const own = Object.entries(schema.properties || {}).flatMap(([name, one]) => [name, ...words(one, depth + 1)]);
  const items = schema.items ? words(schema.items, depth + 1) : [];
  return [...own, ...items, ...(schema.anyOf || []).flatMap((one) => words(one, depth + 1))];
}
