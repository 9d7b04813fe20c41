// Requests to the service, with the token that it may ask for, and what rows look like: thumbnails, or the words of texts.

const BUSY_TRIES = 20;
const PICTURES_KEPT = 600;
const PICTURES_AT_ONCE = 8;

export async function call(path, options = {}) {
  for (let busy = 0; ;) {
    const headers = new Headers(options.headers);
    const token = sessionStorage.getItem("token");
    if (token) headers.set("Authorization", `Bearer ${token}`);
    const response = await fetch(path, { ...options, headers });
    if (response.status === 401) await askForToken(token);
    else if (response.status === 429 && ++busy < BUSY_TRIES) await pause(300 + 700 * Math.random());
    else if (response.ok) return response;
    else throw await errorOf(response);
  }
}

// The JSON of an answer. Whole numbers that are too large for JavaScript's own (numbers of products, say) stay as they are written.
export async function read(response) {
  const isTooLarge = (value) => Number.isInteger(value) && !Number.isSafeInteger(value);
  return JSON.parse(await response.text(), (_, value, context) => (isTooLarge(value) ? context?.source ?? value : value));
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const text = typeof body.detail === "string" ? body.detail : `The service answered ${response.status}.`;
  return Object.assign(new Error(text), { status: response.status });
}

let asking = null;
function askForToken(refused) {
  if (sessionStorage.getItem("token") !== refused) return undefined; // another request has a newer one already
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("login");
    const field = document.getElementById("token");
    document.getElementById("login-problem").textContent = refused ? "That token was not accepted." : "";
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      if (dialog.returnValue !== "go") return reject(new Error("The service asks for a token; load the page again to give it."));
      sessionStorage.setItem("token", field.value.trim());
      return resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Thumbnails need the token, so they are fetched and shown as blobs; a few at a time, in the order in which they are asked for.
const waiting = [];
const pictures = new Map();
let loading = 0;

function pump() {
  while (loading < PICTURES_AT_ONCE && waiting.length) {
    const { load, resolve, reject } = waiting.shift();
    loading += 1;
    load().then(resolve, reject).finally(() => { loading -= 1; pump(); });
  }
}

const thumbnail = (id) => call(`/api/thumbnail/${id}`).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
const wording = (id) => call(`/api/text/${id}`).then((answer) => answer.json()).then((body) => body.text);

let ofTexts = false;
export function setTexts(isSo) { ofTexts = isSo; }

// What a row looks like, as a node of its own: its picture, or its words.
export async function look(id) {
  const node = document.createElement(ofTexts ? "p" : "img");
  const found = await kept(id, ofTexts ? wording : thumbnail);
  if (ofTexts) Object.assign(node, { className: "words", dir: "auto", textContent: found });
  else Object.assign(node, { alt: "", src: found });
  return node;
}

function kept(id, load) {
  let promise = pictures.get(id);
  if (promise) return promise;
  promise = new Promise((resolve, reject) => { waiting.push({ load: () => load(id), resolve, reject }); pump(); });
  promise.catch(() => pictures.delete(id)); // the next who asks tries again
  pictures.set(id, promise);
  if (pictures.size > PICTURES_KEPT) {
    const [oldest, url] = pictures.entries().next().value;
    pictures.delete(oldest);
    url.then(URL.revokeObjectURL, () => {});
  }
  return promise;
}
