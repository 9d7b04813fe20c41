// The page: modules without a build step. All texts from the service go in as text, never as HTML.
import { call, look, read, setTexts } from "/static/api.js";
import { card, scaleOf, valuesOf, walk } from "/static/cards.js";
import { MapPanel } from "/static/map.js";
import { fromHash, imageOf, keepImage, nameOf, newRandom, titleOf, toHash } from "/static/views.js";

const RESULTS = 60;
const COLUMNS_AT_FIRST = 3;
const element = (id) => document.getElementById(id);
const state = { info: null, view: null, turn: 0, shown: "" };
const say = (text) => { element("message").textContent = text; };
const map = new MapPanel({ choose: (point) => go({ kind: "row", id: point.id }), say });

// Labels as the service counted them, the most frequent first: an object's own order puts numbers before other names.
const labels = () => Object.entries(state.info.labels).sort(([, a], [, b]) => b - a).map(([label]) => label);

async function answersTo(view) {
  const k = Math.min(RESULTS, state.info.max_k);
  const columns = namesIn(view.show ?? state.shown);
  const asked = [["label", view.filter], ["where", view.where], ...columns.map((name) => ["columns", name])];
  const filter = asked.map(([name, text]) => (text ? `&${name}=${encodeURIComponent(text)}` : "")).join("");
  if (view.kind === "random") return { hits: await read(await call(`/api/random?count=${k}&seed=${view.seed}${filter}`)) };
  if (view.kind === "image") {
    const answer = await call(`/api/search/image?k=${k}${filter}`, { method: "POST", body: imageOf(view).blob });
    return { hits: (await read(answer)).answers[0], isScored: true };
  }
  const query = view.kind === "text" ? { text: view.text } : view.id === undefined ? { uri: view.uri } : { id: view.id };
  const labels = view.filter ? [view.filter] : [];
  const body = JSON.stringify({ queries: [query], k, labels, where: view.where ?? "", columns });
  const answer = await read(await call("/api/search", { method: "POST", body, headers: { "Content-Type": "application/json" } }));
  Object.assign(view, answer.queries[0]);
  return { hits: answer.answers[0], isScored: true, isCut: answer.cut_texts > 0 };
}

// Show a view. `keep` says what becomes of the address: "push" a new entry, "replace" the one that is there, or neither.
async function show(view, keep) {
  const turn = ++state.turn;
  const opened = document.activeElement?.closest?.("#grid .card") ? document.activeElement.title : null;
  say("Searching …");
  const began = performance.now();
  let answer;
  try {
    answer = await answersTo(view);
  } catch (error) {
    if (turn === state.turn) {
      say(error.message);
      element("where").value = view.where ?? "";
      element("show").value = view.show ?? state.shown;
      state.view ??= view; // so that a bad condition in the address can be mended
    }
    return;
  }
  if (turn !== state.turn) return; // a later click was faster
  remember(view, keep, opened);
  state.view = view;
  const { hits, isScored = false, isCut = false } = answer;
  const scale = isScored && hits.length ? scaleOf(hits, state.info.metric) : null;
  showQuery(view, isCut);
  element("label").value = view.filter ?? "";
  element("words").value = view.text ?? "";
  element("where").value = view.where ?? "";
  element("show").value = view.show ?? state.shown;
  element("grid").replaceChildren(...hits.map((hit) => card(hit, scale, (chosen) => go({ kind: "row", ...chosen }))));
  const milliseconds = Math.round(performance.now() - began);
  const bars = scale && hits.length > 1 ? `; bars compare the ${scale.name === "distance" ? "nearness" : scale.name} of these` : "";
  say(hits.length ? `${hits.length} ${isScored ? "nearest" : "drawn at random"}, ${milliseconds} ms${bars}` : nothing(view));
  map.mark(hits.map((hit) => hit.id));
  if (keep === "push") arrive(opened !== null);
}

function nothing(view) {
  if (view.where) return `No ${view.filter ? `other row with the label “${view.filter}”` : "row"} fulfils “${view.where}”.`;
  return view.filter ? `No other row has the label “${view.filter}”.` : "There are no rows to show.";
}

// Where a new view begins; the card that was pressed is gone, and with it the focus.
function arrive(hadFocus) {
  if (!map.shown) window.scrollTo({ top: 0 });
  if (hadFocus) element("query").focus({ preventScroll: true });
}

function remember(view, keep, opened) {
  if (keep === "push") {
    history.replaceState({ ...history.state, scroll: window.scrollY, opened }, "");
    history.pushState({ depth: (history.state?.depth ?? 0) + 1 }, "", toHash(view, map.shown));
  } else if (keep === "replace") {
    history.replaceState({ depth: history.state?.depth ?? 0 }, "", toHash(view, map.shown));
  }
  document.title = titleOf(view);
  element("back").disabled = !history.state?.depth;
}

// Names have neither commas nor spaces.
const namesIn = (text) => text.split(/[\s,]+/).filter(Boolean);

function filters() {
  const show = namesIn(element("show").value).join(", ");
  return { filter: element("label").value, where: element("where").value.trim(), show: show === state.shown ? undefined : show };
}

const go = (view) => show({ ...filters(), ...view }, "push");

// The address changed by Back, Forward or by hand.
async function follow() {
  let [view, withMap] = fromHash(location.hash);
  const isLost = view.kind === "image" && !imageOf(view);
  if (isLost) view = newRandom({ filter: view.filter, where: view.where, show: view.show });
  map.toggle(withMap, labels());
  await show(view, history.state && !isLost && location.hash.length > 1 ? "" : "replace");
  if (isLost) say("An image of yours is not kept in the address: choose it again. These are random ones.");
  const { scroll, opened } = history.state ?? {};
  if (scroll !== undefined) window.scrollTo({ top: scroll });
  const card = opened && [...document.querySelectorAll("#grid .card")].find((one) => one.title === opened);
  if (card) card.focus({ preventScroll: true });
}

function showQuery(view, isCut) {
  const section = element("query");
  section.hidden = view.kind === "random";
  if (section.hidden) return;
  const text = document.createElement("p");
  const image = document.createElement("img");
  if (view.kind === "text") {
    section.replaceChildren(words(view.text, isCut));
    return;
  }
  if (view.kind === "image") {
    image.src = imageOf(view).url;
    image.alt = "the image that is searched by";
    text.textContent = "like your image";
  } else {
    const shown = image;
    look(view.id).then((node) => { node.alt = view.label ?? nameOf(view.uri); shown.replaceWith(node); }, () => shown.remove());
    const label = document.createElement("b");
    label.textContent = view.label ? `like this ${view.label}` : "like this";
    const uri = document.createElement("small");
    uri.textContent = view.uri;
    label.dir = uri.dir = "auto";
    text.append(label, uri, ...valuesOf(view));
  }
  section.replaceChildren(image, text);
}

function words(said, isCut) {
  const text = document.createElement("p");
  const quoted = document.createElement("b");
  quoted.textContent = `“${said}”`;
  quoted.dir = "auto";
  text.append(quoted);
  if (isCut) {
    const note = document.createElement("small");
    note.textContent = "longer than the network takes: its end was left out";
    text.append(note);
  }
  return text;
}

function searchByWords() {
  const text = element("words").value.trim();
  if (text && state.info) go({ kind: "text", text });
}

function searchBy(blob) {
  if (!blob) return;
  if (!state.info?.images) say("This service was started without its network, so it cannot search by images.");
  else if (blob.size > state.info.max_body_bytes) {
    say(`The image has ${(blob.size / 1e6).toFixed(1)} MB; the service takes at most ${(state.info.max_body_bytes / 1e6).toFixed(1)}.`);
  } else go({ kind: "image", key: keepImage(blob) });
}

function toggleMap() {
  map.toggle(!map.shown, labels());
  if (state.view) history.replaceState(history.state, "", toHash(state.view, map.shown));
}

function filter() {
  const asked = filters();
  const isNew = asked.filter !== (state.view?.filter ?? "") || asked.where !== (state.view?.where ?? "") || asked.show !== state.view?.show;
  if (state.view && isNew) show({ ...state.view, ...asked }, "push");
}

const back = () => { if (history.state?.depth) history.back(); };
const random = () => go(newRandom(filters()));

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea, dialog *");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !state.info) return;
  if (event.key.startsWith("Arrow")) walk(element("grid"), event.key);
  else if (event.key === "r") random();
  else if (event.key === "m") toggleMap();
  else if (event.key === "/" && state.info.words) { element("words").focus(); element("words").select(); }
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});
document.addEventListener("paste", (event) => {
  searchBy([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
});
let inside = 0;
document.addEventListener("dragenter", () => { inside += 1; element("drop").hidden = false; });
document.addEventListener("dragleave", () => { inside -= 1; element("drop").hidden = inside <= 0; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  element("drop").hidden = true;
  searchBy(event.dataTransfer.files[0]);
});
element("pick").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", (event) => { searchBy(event.target.files[0]); event.target.value = ""; });
element("random").addEventListener("click", random);
element("back").addEventListener("click", back);
element("toggle-map").addEventListener("click", toggleMap);
element("label").addEventListener("change", filter);
element("words-form").addEventListener("submit", (event) => { event.preventDefault(); searchByWords(); });
element("where").addEventListener("change", filter);
element("show").addEventListener("change", filter);
element("controls").addEventListener("submit", (event) => { event.preventDefault(); filter(); });

function introduce() {
  const { rows, version, table, table_version: tableVersion, labels: counts, label_count: labelCount } = state.info;
  element("about").textContent = `${rows.toLocaleString()} ${state.info.texts ? "texts" : "images"}, version ${version} of the index, ${tableVersion} of its table`;
  element("about").title = table;
  element("pick").hidden = state.info.texts;
  element("words-form").hidden = !state.info.words;
  element("labels").replaceChildren(...labels().map((label) => {
    const option = document.createElement("option");
    option.value = label;
    option.label = `${label} (${counts[label].toLocaleString()})`;
    return option;
  }));
  element("label").placeholder = `all ${labelCount.toLocaleString()}`;
  element("label").parentElement.hidden = !labelCount;
  const columns = Object.entries(state.info.columns).filter(([name]) => !["uri", "etag", "label"].includes(name));
  const described = columns.map(([name, type]) => `${name} (${type})`).join(", ");
  element("where").title = `A condition on ${described}`;
  element("show").title = `Columns to show: some of ${described}`;
  for (const name of ["where", "show"]) element(name).parentElement.hidden = !columns.length;
  state.shown = columns.slice(0, COLUMNS_AT_FIRST).map(([name]) => name).join(", ");
}

history.scrollRestoration = "manual";
try {
  state.info = await read(await call("/api/index"));
  setTexts(state.info.texts);
  introduce();
  await follow();
  window.addEventListener("popstate", follow);
} catch (error) {
  say(error.message);
}
