// A scatter map on a canvas: drag to move, wheel or pinch to zoom, hover to see a point, click to choose it; with keys, the point
// nearest to a cross in the middle.
const NEAR_PIXELS = 14;
const NEAR_CROSS_PIXELS = 40;
const MOVE_MILLISECONDS = 900;
const COLOURS = 12; // more hues cannot be told apart
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class ScatterMap {
  // `labels` in the order of their importance: the first ones get colours, all others are grey.
  constructor(canvas, points, labels, { choose, peek }) {
    Object.assign(this, { canvas, points, choose, peek, marked: new Set(), scale: 1, x: 0, y: 0, pointers: new Map(), moved: 0 });
    const present = new Set(points.map((point) => point.label));
    const coloured = labels.filter((label) => present.has(label)).slice(0, COLOURS);
    // The golden angle keeps hues apart; it begins with blue and red, which most eyes tell apart.
    this.hues = new Map(coloured.map((label, index) => [label, Math.round((218 + index * 137.508) % 360)]));
    this.greyLabels = [...present].filter((label) => label !== null && !this.hues.has(label)).length;
    this.cross = false;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerleave", () => this.peek(null));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.showCross(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.showCross(false));
    new ResizeObserver(() => this.draw()).observe(canvas);
    dark.addEventListener("change", () => this.draw());
  }

  // Points in other places: they travel there, unless the user wants no motion.
  setPoints(points) {
    const old = new Map(this.points.map((point) => [point.id, point]));
    const begin = performance.now();
    const step = (now) => {
      const share = still.matches ? 1 : Math.min(1, (now - begin) / MOVE_MILLISECONDS);
      const eased = share * share * (3 - 2 * share);
      this.points = points.map((point) => {
        const from = old.get(point.id) ?? point;
        return { ...point, x: from.x + (point.x - from.x) * eased, y: from.y + (point.y - from.y) * eased };
      });
      this.draw();
      if (share < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  mark(ids) {
    this.marked = new Set(ids);
    this.draw();
  }

  place(point) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const unit = 0.46 * this.scale;
    return [width / 2 + this.x + point.x * unit * width, height / 2 + this.y - point.y * unit * height];
  }

  colour(label, alpha = 1) {
    const hue = this.hues.get(label);
    const lightness = dark.matches ? 66 : 45;
    return hue === undefined ? `hsl(0 0% ${dark.matches ? 55 : 60}% / ${alpha})` : `hsl(${hue} 70% ${lightness}% / ${alpha})`;
  }

  draw() {
    const { canvas } = this;
    if (!canvas.clientWidth) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const paint = (point, radius, alpha) => {
      const [x, y] = this.place(point);
      context.fillStyle = this.colour(point.label, alpha);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    };
    for (const point of this.points) if (!this.marked.has(point.id)) paint(point, 2.5, this.marked.size ? 0.45 : 0.8);
    for (const point of this.points) if (this.marked.has(point.id)) paint(point, 6, 1);
    if (this.cross) this.drawCross(context);
  }

  drawCross(context) {
    const [x, y] = this.middle();
    context.strokeStyle = dark.matches ? "#fff" : "#000";
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x - 12, y);
    context.lineTo(x + 12, y);
    context.moveTo(x, y - 12);
    context.lineTo(x, y + 12);
    const point = this.nearest(x, y, NEAR_CROSS_PIXELS);
    if (point) {
      const [px, py] = this.place(point);
      context.moveTo(px + 9, py);
      context.arc(px, py, 9, 0, 2 * Math.PI);
    }
    context.stroke();
  }

  middle() { return [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2]; }

  showCross(shown) {
    this.cross = shown;
    this.draw();
    if (shown) this.peekAtCross();
    else this.peek(null);
  }

  peekAtCross() {
    const [x, y] = this.middle();
    const box = this.canvas.getBoundingClientRect();
    this.peek(this.nearest(x, y, NEAR_CROSS_PIXELS), box.left + x, box.top + y, { spoken: true });
  }

  zoom(factor, x, y) {
    const next = Math.max(0.5, Math.min(60, this.scale * factor));
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.x = (x - width / 2) - ((x - width / 2 - this.x) * next) / this.scale;
    this.y = (y - height / 2) - ((y - height / 2 - this.y) * next) / this.scale;
    this.scale = next;
    this.draw();
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.moved = 0;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const near = this.nearest(event.offsetX, event.offsetY);
      this.canvas.style.cursor = near ? "pointer" : "grab";
      this.peek(near, event.clientX, event.clientY);
      return;
    }
    const now = [event.offsetX, event.offsetY];
    const spread = () => {
      const [[ax, ay], [bx, by]] = [...this.pointers.values()];
      return Math.hypot(ax - bx, ay - by);
    };
    if (this.pointers.size === 2) {
      const old = spread();
      this.pointers.set(event.pointerId, now);
      const [[ax, ay], [bx, by]] = [...this.pointers.values()];
      this.zoom(spread() / Math.max(1, old), (ax + bx) / 2, (ay + by) / 2);
      this.moved += NEAR_PIXELS;
      return;
    }
    this.pointers.set(event.pointerId, now);
    this.x += now[0] - before[0];
    this.y += now[1] - before[1];
    this.moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
    this.draw();
  }

  up(event) {
    const held = this.pointers.delete(event.pointerId);
    if (held && event.type === "pointerup" && this.moved < 5) this.click(event.offsetX, event.offsetY);
  }

  click(x, y) {
    const point = this.nearest(x, y);
    if (point) this.choose(point);
  }

  nearest(x, y, within = NEAR_PIXELS) {
    let best = null;
    let least = within;
    for (const point of this.points) {
      const [px, py] = this.place(point);
      const distance = Math.hypot(px - x, py - y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  key(event) {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    const middle = this.middle();
    if (step) {
      this.x += step[0];
      this.y += step[1];
    } else if (event.key === "+" || event.key === "-" || event.key === "=") {
      this.zoom(event.key === "-" ? 1 / 1.3 : 1.3, ...middle);
    } else if (event.key === "Enter" || event.key === " ") {
      const point = this.nearest(...middle, NEAR_CROSS_PIXELS);
      if (point) this.choose(point);
    } else return;
    this.cross = true;
    this.draw();
    this.peekAtCross();
    event.preventDefault();
  }
}
