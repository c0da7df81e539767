// A list of any length with as many elements as fit on the screen. Rows are of one height, and are made and mended by
// the caller; an element stays with its key, so that what has the focus keeps it. Once that is gone, the list has it.

const BEYOND = 8;

export class VirtualList {
  constructor({ scroller, space, height, key, make, mend, onwindow }) {
    Object.assign(this, { scroller, space, key, make, mend, onwindow });
    this.height = height;
    this.items = [];
    this.rows = new Map();
    this.planned = false;
    const plan = () => this.plan();
    scroller.addEventListener("scroll", plan, { passive: true });
    this.watch = new ResizeObserver(plan);
    this.watch.observe(scroller);
    scroller.addEventListener("keydown", (event) => this.press(event));
  }

  close() {
    this.watch.disconnect();
  }

  get isAtEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 2 * this.height;
  }

  show(items) {
    this.items = items;
    this.plan();
  }

  toEnd() {
    this.space.style.height = `${this.items.length * this.height}px`;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.plan();
  }

  plan() {
    if (this.planned) return;
    this.planned = true;
    requestAnimationFrame(() => {
      this.planned = false;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.scroller;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - BEYOND);
    const last = Math.min(this.items.length, Math.ceil((scrollTop + clientHeight) / this.height) + BEYOND);
    this.space.style.height = `${this.items.length * this.height}px`;
    const wanted = new Map();
    for (let index = first; index < last; index += 1) wanted.set(this.key(this.items[index], index), index);
    // Those that go go first. What stays is then in its place: an element that was moved would lose the focus.
    for (const [key, row] of this.rows) {
      if (wanted.has(key)) continue;
      if (row.contains(document.activeElement)) this.scroller.focus({ preventScroll: true });
      row.remove();
      this.rows.delete(key);
    }
    let before = null;
    for (const [key, index] of wanted) {
      const item = this.items[index];
      let row = this.rows.get(key);
      if (row === undefined) {
        row = this.make(item, index);
        this.rows.set(key, row);
      }
      const place = `translateY(${index * this.height}px)`;
      if (row.style.transform !== place) row.style.transform = place;
      this.mend(row, item, index);
      // In the order of the list, for those who go by the order of the document.
      const next = before === null ? this.space.firstChild : before.nextSibling;
      if (next !== row) this.space.insertBefore(row, next);
      before = row;
    }
    this.onwindow?.(this.items.slice(first, last));
  }

  // Up and down go from row to row, whatever is drawn.
  press(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined || !this.items.length || event.altKey || event.ctrlKey || event.metaKey) return;
    const row = document.activeElement?.closest("[data-index]");
    const from = row && this.space.contains(row) ? Number(row.dataset.index) : step > 0 ? -1 : this.items.length;
    const index = Math.min(this.items.length - 1, Math.max(0, from + step));
    event.preventDefault();
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.scroller.scrollTop = top + this.height - clientHeight;
    this.draw();
    const target = this.space.querySelector(`[data-index="${index}"]`);
    (target?.matches("button, a") ? target : target?.querySelector("a, button"))?.focus({ preventScroll: true });
  }
}
