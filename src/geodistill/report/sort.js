// Lets the reader sort a table by any of its columns; without this script the tables are as they are written.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, k) => row.cells[k].dataset.sort ?? row.cells[k].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b) : difference;
  };
  heads.forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      // What was not measured goes last either way.
      const empty = (row) => value(row, k) === "";
      rows.sort((a, b) => empty(a) - empty(b) || (down ? -1 : 1) * compare(value(a, k), value(b, k)));
      body.append(...rows);
    });
  });
}
