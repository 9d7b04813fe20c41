// The page: one module, no build step. All texts from the service go in as text, never as HTML.
import { ScatterMap } from "/static/map.js";

const RESULTS = 60;
const LEGEND_LABELS = 20;
const element = (id) => document.getElementById(id);
const state = { info: null, history: [], current: null, map: null, turn: 0, pictures: new Map() };

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem("token");
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    await askForToken();
    return call(path, options);
  }
  if (response.status === 429) {
    await new Promise((resolve) => setTimeout(resolve, 300 + 700 * Math.random()));
    return call(path, options);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    const error = new Error(typeof body.detail === "string" ? body.detail : `The service answered ${response.status}.`);
    throw Object.assign(error, { status: response.status });
  }
  return response;
}

let asking = null;
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = element("login");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", element("token").value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Thumbnails need the token, so they are fetched and shown as blobs; a few at a time, those in view first.
const waiting = [];
let loading = 0;
function pump() {
  while (loading < 8 && waiting.length) {
    const { id, resolve, reject } = waiting.shift();
    loading += 1;
    call(`/api/thumbnail/${id}`).then((answer) => answer.blob()).then((blob) => resolve(URL.createObjectURL(blob)), reject)
      .finally(() => { loading -= 1; pump(); });
  }
}

function picture(id) {
  let promise = state.pictures.get(id);
  if (!promise) {
    promise = new Promise((resolve, reject) => { waiting.push({ id, resolve, reject }); pump(); });
    state.pictures.set(id, promise);
    if (state.pictures.size > 600) {
      const [oldest, url] = state.pictures.entries().next().value;
      state.pictures.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
  return promise;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    const box = entry.target;
    picture(Number(box.dataset.id)).then((url) => {
      const image = document.createElement("img");
      image.src = url;
      image.alt = box.dataset.alt;
      box.replaceChildren(image);
    }, () => { box.textContent = "no picture"; });
  }
}, { rootMargin: "300px" });

function pictureBox(hit) {
  const box = document.createElement("div");
  box.className = "picture";
  box.dataset.id = hit.id;
  box.dataset.alt = hit.label ? `${hit.label}, ${nameOf(hit.uri)}` : nameOf(hit.uri);
  seen.observe(box);
  return box;
}

const nameOf = (uri) => decodeURIComponentSafe(uri.slice(uri.lastIndexOf("/") + 1));
function decodeURIComponentSafe(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function card(hit, withScore) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "card";
  button.title = hit.uri;
  button.append(pictureBox(hit));
  if (withScore) {
    const meter = document.createElement("div");
    meter.className = "meter";
    const bar = document.createElement("i");
    bar.style.width = `${100 * Math.max(0, Math.min(1, hit.score))}%`;
    meter.append(bar);
    if (state.info.metric === "cosine") button.append(meter);
  }
  const caption = document.createElement("div");
  caption.className = "caption";
  if (withScore) {
    const score = document.createElement("span");
    score.textContent = hit.score.toFixed(3);
    caption.append(score);
  }
  const label = document.createElement("b");
  label.textContent = hit.label ?? " ";
  const name = document.createElement("small");
  name.textContent = nameOf(hit.uri);
  caption.append(label, name);
  button.append(caption);
  button.addEventListener("click", () => show({ kind: "row", hit }));
  item.append(button);
  return item;
}

function say(text) { element("message").textContent = text; }

async function answersTo(view) {
  const label = element("label").value;
  const filter = label ? `&label=${encodeURIComponent(label)}` : "";
  const k = Math.min(RESULTS, state.info.max_k);
  if (view.kind === "random") return [await (await call(`/api/random?count=${k}${filter}`)).json(), false];
  if (view.kind === "image") {
    const answer = await call(`/api/search/image?k=${k}${filter}`, { method: "POST", body: view.blob });
    return [(await answer.json()).answers[0], true];
  }
  const body = JSON.stringify({ queries: [{ id: view.hit.id }], k, labels: label ? [label] : [] });
  const answer = await call("/api/search", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  return [(await answer.json()).answers[0], true];
}

async function show(view, { remember = true } = {}) {
  const turn = ++state.turn;
  say("Searching …");
  const began = performance.now();
  let hits, scored;
  try {
    [hits, scored] = await answersTo(view);
  } catch (error) {
    if (turn === state.turn) say(error.message);
    return;
  }
  if (turn !== state.turn) return; // a later click was faster
  if (remember && state.current) state.history.push(state.current);
  state.current = view;
  element("back").disabled = !state.history.length;
  showQuery(view);
  element("grid").replaceChildren(...hits.map((hit) => card(hit, scored)));
  const milliseconds = Math.round(performance.now() - began);
  say(hits.length ? `${hits.length} ${scored ? "nearest" : "drawn at random"}, ${milliseconds} ms` : "Nothing matches this filter.");
  if (state.map) state.map.mark(hits.map((hit) => hit.id));
  if (remember) window.scrollTo({ top: element("map-view").hidden ? 0 : window.scrollY });
}

function showQuery(view) {
  const section = element("query");
  section.hidden = view.kind === "random";
  if (section.hidden) return;
  const text = document.createElement("p");
  if (view.kind === "image") {
    const image = document.createElement("img");
    image.src = view.url;
    image.alt = "the image that is searched by";
    text.textContent = "like your image";
    section.replaceChildren(image, text);
  } else {
    const image = document.createElement("img");
    image.alt = view.hit.label ?? nameOf(view.hit.uri);
    picture(view.hit.id).then((url) => { image.src = url; }, () => image.remove());
    const label = document.createElement("b");
    label.textContent = `like this${view.hit.label ? ` ${view.hit.label}` : ""}`;
    const uri = document.createElement("small");
    uri.textContent = view.hit.uri;
    text.append(label, uri);
    section.replaceChildren(image, text);
  }
}

function searchBy(blob) {
  if (!blob) return;
  if (!state.info.images) return say("This service was started without its network, so it cannot search by images.");
  show({ kind: "image", blob, url: URL.createObjectURL(blob) });
}

// The picture of the point under the pointer.
function peek(point, x, y) {
  const box = element("peek");
  box.hidden = !point;
  if (!point) return;
  box.style.left = `${Math.min(x + 16, innerWidth - 150)}px`;
  box.style.top = `${Math.min(y + 16, innerHeight - 170)}px`;
  if (box.dataset.id === String(point.id)) return;
  box.dataset.id = point.id;
  const label = document.createElement("b");
  label.textContent = point.label ?? `row ${point.id}`;
  box.replaceChildren(label);
  picture(point.id).then((url) => {
    if (box.dataset.id !== String(point.id)) return;
    const image = document.createElement("img");
    image.src = url;
    image.alt = "";
    box.prepend(image);
  }, () => {});
}

function drawLegend() {
  const known = Object.keys(state.info.labels).filter((label) => state.map.hues.has(label)).slice(0, LEGEND_LABELS);
  element("legend").replaceChildren(...known.map((label) => {
    const item = document.createElement("li");
    const dot = document.createElement("i");
    dot.style.background = state.map.colour(label);
    item.append(dot, label);
    return item;
  }));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.map) drawLegend(); });

// The service goes on drawing a map that took longer than a request may.
async function patiently(path) {
  for (;;) {
    try {
      return await (await call(path)).json();
    } catch (error) {
      if (error.status !== 504) throw error;
      say("Still drawing the map …");
    }
  }
}

async function toggleMap() {
  const section = element("map-view");
  section.hidden = !section.hidden;
  element("toggle-map").setAttribute("aria-pressed", String(!section.hidden));
  if (section.hidden || state.map) return state.map?.draw();
  say("Drawing the map …");
  try {
    const points = await patiently("/api/map");
    const choose = (point) => show({ kind: "row", hit: { ...point, uri: `row ${point.id}` } });
    state.map = new ScatterMap(element("map"), points, { choose, peek });
    drawLegend();
    say(`${points.length} rows on the map`);
  } catch (error) {
    say(error.message);
  }
}

function back() {
  const view = state.history.pop();
  if (view) show(view, { remember: false });
}

// Arrow keys walk the grid as it is laid out.
function walk(key) {
  const cards = [...document.querySelectorAll("#grid .card")];
  if (!cards.length) return;
  const at = cards.indexOf(document.activeElement);
  const columns = getComputedStyle(element("grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = at < 0 ? 0 : at + step;
  if (cards[next]) { cards[next].focus(); cards[next].scrollIntoView({ block: "nearest" }); }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea, dialog *");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.id === "map" && event.key.startsWith("Arrow")) return;
  if (event.key.startsWith("Arrow")) walk(event.key);
  else if (event.key === "r") show({ kind: "random" });
  else if (event.key === "m") toggleMap();
  else if (event.key === "Backspace") back();
  else if ((event.key === "Enter" || event.key === " ") && event.target.id === "pick") element("file").click();
  else return;
  event.preventDefault();
});
document.addEventListener("paste", (event) => {
  searchBy([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
});
let inside = 0;
document.addEventListener("dragenter", () => { inside += 1; element("drop").hidden = false; });
document.addEventListener("dragleave", () => { inside -= 1; element("drop").hidden = inside > 0 ? false : true; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  element("drop").hidden = true;
  searchBy(event.dataTransfer.files[0]);
});
element("file").addEventListener("change", (event) => { searchBy(event.target.files[0]); event.target.value = ""; });
element("random").addEventListener("click", () => show({ kind: "random" }));
element("back").addEventListener("click", back);
element("toggle-map").addEventListener("click", toggleMap);
element("controls").addEventListener("submit", (event) => event.preventDefault());
element("label").addEventListener("change", () => show(state.current ?? { kind: "random" }, { remember: false }));

try {
  state.info = await (await call("/api/index")).json();
  const { rows, version, table, table_version: tableVersion, labels } = state.info;
  element("about").textContent = `${rows.toLocaleString()} images, version ${version} of the index, ${tableVersion} of its table`;
  element("about").title = table;
  for (const [label, count] of Object.entries(labels)) {
    const option = document.createElement("option");
    option.value = label;
    option.textContent = `${label} (${count.toLocaleString()})`;
    element("label").append(option);
  }
  element("label").parentElement.hidden = !Object.keys(labels).length;
  await show({ kind: "random" });
} catch (error) {
  say(error.message);
}
