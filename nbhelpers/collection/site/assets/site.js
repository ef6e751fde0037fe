// A name for screen readers must hold the words that are seen, and what scrolls must be reached by keys.
document.addEventListener("DOMContentLoaded", () => {
  for (const named of document.querySelectorAll("summary[aria-label], .search-button-field"))
    named.removeAttribute("aria-label");
  const reach = () => {
    for (const box of document.querySelectorAll("article table, .cell_output, .cell_output .output, article pre"))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
  };
  addEventListener("load", reach);
  addEventListener("resize", reach);
});
