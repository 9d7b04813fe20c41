// What is shown, as the part of the address after #, so that Back, reload and bookmarks work; it is never sent to the service.
//
// A view is { kind: "random", seed }, { kind: "row", uri, id, label }, { kind: "text", text } or { kind: "image", key }, each with
// the label (`filter`) and the condition on columns (`where`) that it is filtered by ("" for all), and the columns that its rows
// show (`show`; undefined for those of a start). A row's URI names it for ever,
// its id only in this index. An image of the user's own is kept in this tab alone.

const images = new Map();

export function keepImage(blob) {
  const key = String(Date.now());
  images.set(key, { blob, url: URL.createObjectURL(blob) });
  return key;
}

export const imageOf = (view) => images.get(view.key);

export const newRandom = (filters) => ({ kind: "random", seed: Math.floor(Math.random() * 2 ** 32), ...filters });

export function toHash(view, withMap) {
  const parts = new URLSearchParams();
  if (view.kind === "row") parts.set("like", view.uri);
  else if (view.kind === "text") parts.set("text", view.text);
  else if (view.kind === "image") parts.set("image", view.key);
  else parts.set("random", view.seed);
  if (view.filter) parts.set("label", view.filter);
  if (view.where) parts.set("where", view.where);
  if (view.show !== undefined) parts.set("show", view.show);
  if (withMap) parts.set("map", "1");
  return `#${parts}`;
}

// The view of an address, and whether it shows the map; an address that says nothing is a random view.
export function fromHash(hash) {
  const parts = new URLSearchParams(hash.slice(1));
  const filters = { filter: parts.get("label") ?? "", where: parts.get("where") ?? "", show: parts.get("show") ?? undefined };
  const withMap = parts.has("map");
  if (parts.get("like")) return [{ kind: "row", uri: parts.get("like"), ...filters }, withMap];
  if (parts.get("text")) return [{ kind: "text", text: parts.get("text"), ...filters }, withMap];
  if (parts.get("image")) return [{ kind: "image", key: parts.get("image"), ...filters }, withMap];
  const seed = Number(parts.get("random"));
  if (parts.get("random") && Number.isSafeInteger(seed) && seed >= 0) return [{ kind: "random", seed, ...filters }, withMap];
  return [newRandom(filters), withMap];
}

export function titleOf(view) {
  const filter = [view.filter, view.where].filter(Boolean).map((text) => `, ${text}`).join("");
  if (view.kind === "row") return `like ${nameOf(view.uri)}${filter} · tlray search`;
  if (view.kind === "text") return `“${view.text}”${filter} · tlray search`;
  return `${view.kind === "image" ? "like your image" : "random images"}${filter} · tlray search`;
}

export const nameOf = (uri) => decodeURIComponentSafe(uri.slice(uri.lastIndexOf("/") + 1));

function decodeURIComponentSafe(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}
