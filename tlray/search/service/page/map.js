// The map's panel: drawn at once, improved when the service has a better layout; a legend; a look at the point under the pointer.
import { call, look, pause } from "/static/api.js";
import { ScatterMap } from "/static/scatter.js";

const ASK_AGAIN_MILLISECONDS = 2000;
const element = (id) => document.getElementById(id);

export class MapPanel {
  constructor({ choose, say }) {
    Object.assign(this, { choose, say, map: null, loading: false });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (this.map) this.drawLegend(); });
  }

  get shown() { return !element("map-view").hidden; }

  async toggle(shown, labels) {
    element("map-view").hidden = !shown;
    element("toggle-map").setAttribute("aria-expanded", String(shown));
    if (!shown || this.loading) return;
    if (this.map) { this.map.draw(); return; }
    this.loading = true;
    element("map-state").textContent = "Drawing the map …";
    try {
      const answer = await patiently("/api/map");
      this.map = new ScatterMap(element("map"), answer.points, labels, { choose: this.choose, peek });
      this.map.mark(this.marked ?? []);
      this.drawLegend();
      this.tell(answer);
      if (answer.improving) this.improve();
    } catch (error) {
      element("map-state").textContent = error.message;
    } finally {
      this.loading = false;
    }
  }

  async improve() {
    try {
      for (;;) {
        await pause(ASK_AGAIN_MILLISECONDS);
        if (!this.shown || document.hidden) continue;
        const answer = await patiently("/api/map");
        if (answer.improving) continue;
        this.map.setPoints(answer.points);
        this.tell(answer);
        return;
      }
    } catch (error) {
      element("map-state").textContent = error.message;
    }
  }

  tell({ points, layout, improving }) {
    const later = improving ? "; a layout that keeps neighbours together is being computed …" : ".";
    element("map-state").textContent = `${points.length.toLocaleString()} rows on the map, laid out by ${layout}${later}`;
  }

  mark(ids) {
    this.marked = ids;
    this.map?.mark(ids);
  }

  drawLegend() {
    const items = [...this.map.hues.keys()].map((label) => legendItem(this.map.colour(label), label));
    const grey = this.map.greyLabels;
    if (grey) items.push(legendItem(this.map.colour(), `${grey.toLocaleString()} more label${grey > 1 ? "s" : ""}`));
    element("legend").replaceChildren(...items);
  }
}

function legendItem(colour, text) {
  const item = document.createElement("li");
  const dot = document.createElement("i");
  dot.style.background = colour;
  const name = document.createElement("span");
  name.textContent = name.title = text;
  name.dir = "auto";
  item.append(dot, name);
  return item;
}

// A first map of a large collection may take longer than a request may; the service goes on drawing it.
async function patiently(path) {
  for (;;) {
    try {
      return await (await call(path)).json();
    } catch (error) {
      if (error.status !== 504) throw error;
    }
  }
}

// The picture of the point under the pointer, or under the cross, which is also spoken.
function peek(point, x, y, { spoken = false } = {}) {
  const box = element("peek");
  box.hidden = !point;
  if (spoken) element("map-point").textContent = point ? `${point.label ?? "no label"}, row ${point.id}` : "no dot under the cross";
  if (!point) return;
  box.style.left = `${Math.max(0, Math.min(x + 16, innerWidth - 150))}px`;
  box.style.top = `${Math.max(0, Math.min(y + 16, innerHeight - 220))}px`;
  if (box.dataset.id === String(point.id)) return;
  box.dataset.id = point.id;
  const label = document.createElement("b");
  label.textContent = point.label ?? `row ${point.id}`;
  label.dir = "auto";
  box.replaceChildren(label);
  look(point.id).then((node) => { if (box.dataset.id === String(point.id)) box.prepend(node); }, () => {});
}
