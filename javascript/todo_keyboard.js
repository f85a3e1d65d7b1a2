// Opens the accordion and "More settings" by the keyboard: gradio 3 makes the label of an accordion a <div>, which no
// key reaches.
onUiLoaded(function() {
    const labels = '[id$="_todo_enabled"] > div.label-wrap, [id$="_todo_more"] > div.label-wrap';
    for (const label of gradioApp().querySelectorAll(labels)) {
        label.tabIndex = 0;
        label.setAttribute('role', 'button');
        label.addEventListener('keydown', function(event) {
            if (event.target !== label || (event.key !== 'Enter' && event.key !== ' ')) return; // the switch is inside
            event.preventDefault();
            label.click();
        });
    }
});
