"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // --- sorting: headings are buttons, so keys work as clicks do; unknown values come last either way ---
  const value = (row, column, numeric) => {
    const text = row.cells[column].dataset.v;
    return text === "" ? null : numeric ? Number(text) : text;
  };

  const sort = (table, heading) => {
    const headings = all("thead th", table);
    const column = headings.indexOf(heading);
    const numeric = heading.classList.contains("number");
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row, place) => ({ row, place, key: value(row, column, numeric) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      const order = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
      return sign * order || a.place - b.place;
    });
    body.append(...rows.map((item) => item.row));
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  };

  for (const table of all("table.sortable")) {
    for (const heading of all("thead th", table)) {
      heading.querySelector("button").addEventListener("click", () => sort(table, heading));
    }
  }

  // --- filters: the family hides sections and rows, the search hides rows ---
  const buttons = all(".families button");
  const find = document.getElementById("find");
  const count = document.getElementById("count");

  const filter = () => {
    const pressed = buttons.find((button) => button.getAttribute("aria-pressed") === "true");
    const family = pressed ? pressed.dataset.family : "";
    const wanted = find.value.trim().toLowerCase();
    for (const block of all("[data-family]:not(tr):not(button)")) block.hidden = family !== "" && block.dataset.family !== family;
    let shown = 0;
    for (const row of all("tr[data-family]")) {
      const other = family !== "" && row.dataset.family !== family;
      row.hidden = other || (wanted !== "" && !row.cells[0].textContent.toLowerCase().includes(wanted));
      if (!row.hidden && row.closest("#headline")) shown += 1;
    }
    const total = all("#headline tbody tr").length;
    count.textContent = shown === total ? "" : `${shown} of ${total} methods`;
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      filter();
    });
  }
  find.addEventListener("input", filter);
  document.documentElement.dataset.ready = "true";
})();
