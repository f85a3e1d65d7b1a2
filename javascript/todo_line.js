// Folds the brackets in ToDo's line under the image into a <details>, with an entry for each pass.
// Without this script the whole line is shown. The WebUI loads this file by itself.
(() => {
    const LINE = /^\s*ToDo: .*\[.*\]/;
    const PASS = /(?:[^;[]|\[[^\]]*\])+/g; // passes are parted by semicolons, and so are the depths in the brackets
    const BRACKETS = /\s*\[([^\]]*)\]/g;

    function element(name, text = "") {
        const made = document.createElement(name);
        made.textContent = text;
        return made;
    }

    function fold(node) {
        const passes = node.data.trim().replace(/^ToDo: /, "").match(PASS);
        const entries = passes.map((pass) => {
            const name = pass.replace(BRACKETS, "").trim().split(": ").slice(0, -1);
            const grids = [...pass.matchAll(BRACKETS)].map((match) => match[1]);
            return element("li", grids.length ? [...name, ...grids].join(": ") : pass.trim());
        });
        const list = element("ul");
        list.append(...entries);
        const details = element("details");
        details.className = "todo-line";
        details.append(element("summary", node.data.replace(BRACKETS, "").trim()), list);
        node.replaceWith(details);
    }

    onAfterUiUpdate(() => {
        for (const comments of gradioApp().querySelectorAll(".comments")) {
            for (const node of [...comments.childNodes]) {
                if (node.nodeType === Node.TEXT_NODE && LINE.test(node.data)) fold(node);
            }
        }
    });
})();
