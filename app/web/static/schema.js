/** JSON Schema as a flat description of form fields. Knows the subset of JSON Schema that pydantic writes, and no HTML. */

import { words } from "./format.js";

/**
 * Fields of an object schema, in its order:
 * {name, path, label, help, kind, options, minimum, maximum, examples, fallback, fields}
 * kind: choice, boolean, integer, number, list, text, group (with fields of its own) or json.
 */
export function fieldsOf(schema, { root = schema, path = [], skip = [] } = {}) {
  const object = resolve(schema, root).schema;
  return Object.entries(object.properties || {})
    .filter(([name]) => !skip.includes(name))
    .map(([name, entry]) => describe(name, entry, root, [...path, name]));
}

function describe(name, raw, root, path) {
  const { schema, nullable } = resolve(raw, root);
  const field = {
    name,
    path,
    nullable,
    label: words(name),
    help: raw.description || schema.description || "",
    fallback: raw.default ?? schema.default,
    minimum: schema.minimum ?? schema.exclusiveMinimum,
    maximum: schema.maximum ?? schema.exclusiveMaximum,
    examples: schema.examples,
  };
  const options = choices(schema);
  if (options) return { ...field, kind: "choice", options };
  if (schema.type === "boolean") return { ...field, kind: "boolean" };
  if (schema.type === "integer" || schema.type === "number") return { ...field, kind: schema.type };
  if (schema.type === "string") return { ...field, kind: "text" };
  const of = schema.type === "array" ? resolve(schema.items || {}, root).schema.type : undefined;
  if (schema.type === "array" && of !== "array") return { ...field, kind: "list", of }; // rows of numbers are written as JSON
  if (schema.type === "object" && schema.properties) {
    return { ...field, kind: "group", fields: fieldsOf(schema, { root, path }) };
  }
  const example = of === "array" ? "[[0.9, 0.1], [0.2, 0.8]]" : "{...}";
  return { ...field, kind: "json", help: `${field.help} As JSON: ${example}`.trim() };
}

function choices(schema) {
  if (schema.enum) return schema.enum;
  if (schema.const !== undefined) return [schema.const];
  const entry = schema.anyOf || schema.oneOf;
  return entry && entry.every((one) => one.const !== undefined) ? entry.map((one) => one.const) : null;
}

/** Through $ref, a single allOf and "or null", to the schema that says something. */
function resolve(schema, root) {
  let nullable = false;
  for (;;) {
    const others = (schema.anyOf || schema.oneOf || []).filter((entry) => entry.type !== "null");
    if (schema.$ref) schema = lookup(schema.$ref, root);
    else if (schema.allOf?.length === 1) schema = schema.allOf[0];
    else if (others.length === 1) {
      nullable ||= others.length < (schema.anyOf || schema.oneOf).length;
      schema = others[0];
    } else return { schema, nullable };
  }
}

function lookup(reference, root) {
  return reference.replace(/^#\//, "").split("/").reduce((place, key) => place?.[key], root) || {};
}
