// Results as cards: picture, score, label and name.
import { look } from "/static/api.js";
import { nameOf } from "/static/views.js";

const SCORES = { cosine: "similarity", ip: "inner product", l2: "distance" };

// How scores of one answer are shown: bars run from its least to its most similar row, since the cosines of neighbours hardly
// differ on a scale from 0 to 1; as many digits as it takes to tell them apart.
export function scaleOf(hits, metric) {
  const scores = hits.map((hit) => hit.score);
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const spread = most - least;
  const digits = spread > 0 ? Math.min(6, Math.max(3, Math.ceil(1 - Math.log10(spread)))) : 3;
  const share = (score) => (spread > 0 ? (score - least) / spread : 1);
  return {
    name: SCORES[metric] ?? "score",
    text: (score) => score.toFixed(digits),
    share: (score) => (metric === "l2" && spread > 0 ? 1 - share(score) : share(score)),
  };
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    inView.unobserve(entry.target);
    const box = entry.target;
    look(Number(box.dataset.id)).then((node) => box.replaceChildren(node), () => { box.textContent = "cannot be shown"; });
  }
}, { rootMargin: "300px" });

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

const textOf = (value) => (Array.isArray(value) ? value.map(textOf).join(", ") : value === null ? "–" : String(value));

// The columns of a row that are shown, a line each.
export function valuesOf(row) {
  return Object.entries(row.columns ?? {}).map(([name, value]) => {
    const line = make("small", "value");
    line.title = `${name}: ${textOf(value)}`;
    line.append(`${name} `, make("bdi", "", textOf(value)));
    return line;
  });
}

// `scale` is null where nothing was searched for.
export function card(hit, scale, choose) {
  const button = make("button", "card");
  button.type = "button";
  button.title = hit.uri;
  const spoken = [hit.label ?? "no label", nameOf(hit.uri)];
  const box = make("div", "picture");
  box.dataset.id = hit.id;
  inView.observe(box);
  button.append(box);
  const caption = make("div", "caption");
  if (scale) {
    const meter = make("div", "meter");
    const bar = make("i");
    bar.style.width = `${4 + 96 * scale.share(hit.score)}%`;
    meter.append(bar);
    button.append(meter);
    caption.append(make("span", "", scale.text(hit.score)));
    spoken.push(`${scale.name} ${scale.text(hit.score)}`);
  }
  const label = make("b", "", hit.label ?? " ");
  const name = make("small", "", nameOf(hit.uri));
  if (hit.label) label.title = hit.label;
  label.dir = name.dir = "auto";
  const values = valuesOf(hit);
  caption.append(label, name, ...values);
  spoken.push(...values.map((line) => line.title));
  button.append(caption);
  button.setAttribute("aria-label", spoken.join(", "));
  button.addEventListener("click", () => choose(hit));
  const item = make("li");
  item.append(button);
  return item;
}

// Arrow keys walk the grid as it is laid out.
export function walk(grid, key) {
  const cards = [...grid.querySelectorAll(".card")];
  if (!cards.length) return;
  const at = cards.indexOf(document.activeElement);
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = cards[at < 0 ? 0 : at + step];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}
