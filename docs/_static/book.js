// Whatever scrolls on its own can be scrolled from the keyboard, and a figure opens in full size, to be read on a phone.
document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll(".cell_output img, article p > img")) {
    const link = image.closest("a") ?? document.createElement("a");
    link.classList.add("figure");
    link.href = image.src;
    if (link.contains(image)) continue;
    image.replaceWith(link);
    link.append(image);
  }
  const mark = () => document.querySelectorAll("pre, .table-wrapper, .text_html, div.math").forEach(box => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  addEventListener("resize", mark);
  addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark));
  mark();
});
