"use strict";
// What a chart tells under the pointer stands beside its title. Without this script each point has its own tip.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg");
  const output = figure.querySelector("output");
  const points = [...svg.querySelectorAll("use")].map((mark) => {
    const title = mark.querySelector("title");
    const told = title.textContent;
    title.remove();
    return { mark, told, x: Number(mark.getAttribute("x")), y: Number(mark.getAttribute("y")) };
  });
  let shown = null;
  const show = (point) => {
    if (point === shown) return;
    if (shown) shown.mark.classList.remove("on");
    if (point) point.mark.classList.add("on");
    output.textContent = point ? point.told : "";
    shown = point;
  };
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null;
    let least = 40 * 40;
    for (const point of points) {
      const apart = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
      if (apart < least) [nearest, least] = [point, apart];
    }
    show(nearest);
  });
  svg.addEventListener("pointerleave", () => show(null));
}
const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("change", (event) => {
  const chosen = event.target.value;
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
});
const save = document.getElementById("save");
if (save) {
  save.hidden = false;
  document.querySelector(".unscripted").hidden = true;
  save.addEventListener("click", () => {
    const text = document.getElementById("survey").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "survey.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
