// Whatever scrolls on its own can be scrolled from the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  const mark = () => document.querySelectorAll("pre, .table-wrapper, .text_html, div.math").forEach(box => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  addEventListener("resize", mark);
  addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(mark));
  mark();
});
