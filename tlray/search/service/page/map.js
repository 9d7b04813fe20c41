// A scatter map on a canvas: drag to move, wheel or pinch to zoom, hover to see a point, click to choose it.
const NEAR_PIXELS = 14;

export class ScatterMap {
  constructor(canvas, points, { choose, peek }) {
    Object.assign(this, { canvas, points, choose, peek, marked: new Set(), scale: 1, x: 0, y: 0, pointers: new Map(), moved: 0 });
    const labels = [...new Set(points.map((point) => point.label))].sort();
    // The golden angle keeps any number of hues apart; it begins with blue and red, which most eyes tell apart.
    this.hues = new Map(labels.map((label, index) => [label, Math.round((218 + index * 137.508) % 360)]));
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerleave", () => this.peek(null));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
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
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return `hsl(${this.hues.get(label)} 70% ${dark ? 66 : 45}% / ${alpha})`;
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

  nearest(x, y) {
    let best = null;
    let least = NEAR_PIXELS;
    for (const point of this.points) {
      const [px, py] = this.place(point);
      const distance = Math.hypot(px - x, py - y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  key(event) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (step) {
      this.x += step[0];
      this.y += step[1];
      this.draw();
    } else if (event.key === "+" || event.key === "-") {
      this.zoom(event.key === "+" ? 1.3 : 1 / 1.3, width / 2, height / 2);
    } else return;
    event.preventDefault();
  }
}
