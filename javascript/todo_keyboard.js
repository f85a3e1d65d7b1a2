// Opens "More settings" by the keyboard: gradio 3 makes the label of an accordion a <div>, which no key reaches.
onUiLoaded(function() {
    for (const label of gradioApp().querySelectorAll('[id$="_todo_more"] > div.label-wrap')) {
        label.tabIndex = 0;
        label.setAttribute('role', 'button');
        label.addEventListener('keydown', function(event) {
            if (event.key !== 'Enter' && event.key !== ' ') return;
            event.preventDefault();
            label.click();
        });
    }
});
