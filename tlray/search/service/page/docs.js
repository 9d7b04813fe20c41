// The interface for people, drawn from the OpenAPI document that the service itself makes. Nothing comes from elsewhere.

const METHODS = ["get", "post", "put", "delete"];

function make(tag, content = [], attributes = {}) {
  const node = document.createElement(tag);
  node.append(...(Array.isArray(content) ? content : [content]));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// What a schema's value is, in words; fields of objects come apart, in rows of their own.
function typeOf(schema, document) {
  if (!schema) return "anything";
  if (schema.$ref) return typeOf(resolve(schema, document), document);
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, document)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items, document)}`;
  if (schema.type === "object" && schema.additionalProperties) {
    return `object of ${typeOf(schema.additionalProperties, document)}`;
  }
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "anything";
}

function resolve(schema, document) {
  if (!schema?.$ref) return schema;
  return schema.$ref.slice(2).split("/").reduce((part, name) => part[name], document);
}

const LIMITS = {
  minimum: (value) => `at least ${value}`,
  exclusiveMinimum: (value) => `over ${value}`,
  maximum: (value) => `at most ${value}`,
  exclusiveMaximum: (value) => `under ${value}`,
  maxLength: (value) => `at most ${value} characters`,
  minItems: (value) => `at least ${value}`,
  maxItems: (value) => `at most ${value}`,
};

// Limits that somebody might meet: not those of the numbers of a machine.
function limitsOf(schema) {
  const names = Object.keys(LIMITS).filter((name) => schema[name] !== undefined && Math.abs(schema[name]) < 2 ** 31);
  return names.map((name) => LIMITS[name](schema[name]));
}

function row(name, schema, required, description, document) {
  const full = schema.anyOf?.find((one) => one.type !== "null") ?? schema;
  const notes = [description ?? schema.description, ...limitsOf(full)];
  if (schema.default !== undefined && schema.default !== null) notes.push(`default ${JSON.stringify(schema.default)}`);
  return make("tr", [
    make("th", make("code", name), { scope: "row" }),
    make("td", [typeOf(schema, document), required ? ", required" : ""]),
    make("td", notes.filter(Boolean).join("; ")),
  ]);
}

function table(caption, rows) {
  return make("div", make("table", [make("caption", caption), ...rows]), { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
}

// Fields of an object, and of the objects in it: `queries[].id`.
function fieldsOf(schema, document, prefix = "", seen = new Set()) {
  const full = resolve(schema, document);
  if (full?.type === "array") return fieldsOf(full.items, document, `${prefix}[]`, seen);
  if (!full?.properties || seen.has(full)) return [];
  const rows = [];
  for (const [name, property] of Object.entries(full.properties)) {
    const path = prefix ? `${prefix}.${name}` : name;
    rows.push(row(path, property, (full.required ?? []).includes(name), property.description, document));
    rows.push(...fieldsOf(property, document, path, new Set(seen).add(full)));
  }
  return rows;
}

function example(path, operation) {
  const url = `${location.origin}${path.replace(/\{[^}]+\}/g, "1")}`;
  const content = Object.keys(operation.requestBody?.content ?? {})[0];
  const body = content === "application/json"
    ? [`-H 'Content-Type: application/json' -d '{"queries": [{"id": 1}], "k": 5}'`]
    : content ? ["--data-binary @image.jpg"] : [];
  return ["curl -H 'Authorization: Bearer <token>'", ...body, `'${url}'`].join(" \\\n     ");
}

function show(method, path, operation, document) {
  const parts = [
    make("h3", [make("code", method.toUpperCase()), " ", make("code", path)]),
    make("p", operation.description ?? operation.summary ?? ""),
    make("pre", make("code", example(path, operation)), { tabindex: "0", "aria-label": "Example" }),
  ];
  if (operation.parameters?.length) {
    const rows = operation.parameters.map((one) => row(one.name, one.schema, one.required, one.description, document));
    parts.push(table("Parameters", rows));
  }
  for (const [media, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    const fields = fieldsOf(schema, document);
    parts.push(fields.length ? table(`Body, ${media}`, fields) : make("p", `Body: ${media}`));
  }
  for (const [media, { schema }] of Object.entries(operation.responses?.["200"]?.content ?? {})) {
    const fields = fieldsOf(schema, document);
    parts.push(fields.length ? table(`Answer, ${media}`, fields) : make("p", `Answer: ${media}`));
  }
  return make("section", parts);
}

try {
  const response = await fetch("/openapi.json");
  if (!response.ok) throw new Error(`The service answered ${response.status}.`);
  const description = await response.json();
  document.getElementById("about").textContent = `version ${description.info.version}`;
  for (const [path, operations] of Object.entries(description.paths)) {
    for (const method of METHODS.filter((name) => operations[name])) {
      document.getElementById("operations").append(show(method, path, operations[method], description));
    }
  }
} catch (error) {
  document.getElementById("message").textContent = `The description of the interface cannot be shown: ${error.message}`;
}
