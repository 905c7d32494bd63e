"use strict";
(function () {
  const svg = document.getElementById("graph"), frame = svg.parentElement, tools = document.querySelector(".tools");
  const [left, top, width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const view = { x: left, y: top, width: width }; // its height follows from the frame's shape
  const ratio = () => frame.clientHeight / Math.max(1, frame.clientWidth);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

  function show() {
    const w = view.width, h = w * ratio();
    view.x = clamp(view.x, left - w / 2, left + width - w / 2);
    view.y = clamp(view.y, top - h / 2, top + height - h / 2);
    svg.setAttribute("viewBox", [view.x, view.y, w, h].join(" "));
  }
  function zoom(factor, px = 0.5, py = 0.5) {
    const w = clamp(view.width * factor, 150, 4 * Math.max(width, height / ratio()));
    view.x += (view.width - w) * px;
    view.y += (view.width - w) * ratio() * py;
    view.width = w;
    show();
  }
  function reset() { // boxes as large as they are made for, smaller where the drawing is wide, but readable
    view.width = clamp(width, frame.clientWidth, frame.clientWidth / 0.6);
    const first = svg.querySelector(".box").transform.baseVal[0].matrix.e; // the middle of an input
    view.x = (width > view.width ? first : left + width / 2) - view.width / 2;
    view.y = top;
    show();
  }
  const actions = { in: () => zoom(0.8), out: () => zoom(1.25), reset: reset };
  tools.addEventListener("click", (event) => {
    const action = actions[event.target.dataset.do];
    if (action) action();
  });
  const step = () => view.width / 10;
  const keys = {
    ArrowLeft: () => { view.x -= step(); }, ArrowRight: () => { view.x += step(); },
    ArrowUp: () => { view.y -= step(); }, ArrowDown: () => { view.y += step(); },
    "+": actions.in, "=": actions.in, "-": actions.out, "0": reset,
  };
  frame.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
    show();
  });
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    const box = frame.getBoundingClientRect();
    zoom(Math.exp(event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  let held = null;
  frame.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!held) return;
    const scale = view.width / frame.clientWidth;
    view.x -= (event.clientX - held.x) * scale;
    view.y -= (event.clientY - held.y) * scale;
    held = { x: event.clientX, y: event.clientY };
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { held = null; });
  window.addEventListener("resize", show);
  tools.hidden = false;
  frame.classList.add("live");
  reset();
})();
