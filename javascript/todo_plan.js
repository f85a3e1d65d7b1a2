// What the live plan needs to know of the page, and the host's Python cannot see: the image to be resized, the
// selected checkpoint, and that a checkpoint has been loaded since.

const TODO_INTERVAL = 500; // milliseconds

// Of the tab "Resize by" of img2img, whether it is selected, and the size of the image that it scales; and the name of
// the selected checkpoint, empty where the page does not show it.
function todoState() {
    const by = gradioApp().querySelector('#img2img_tab_resize_by');
    const box = gradioApp().querySelector('#setting_sd_model_checkpoint input, .model_selection input');
    return JSON.stringify({
        by: Boolean(by) && by.style.display !== 'none',
        image: currentImg2imgSourceResolution(0, 0, 0).slice(0, 2),
        checkpoint: box ? box.value : '',
    });
}

const TODO_OUTPUTS = 4; // of the plan's event: the plan and the controls in GREYED, see todo_lib/webui/plan_view.py
let todoAsked = ''; // the inputs of the latest plan: answers may overtake each other, so it is asked for once more

// Called by gradio before the plan is made: puts the state in the place of the first of these values. What comes after
// the inputs are the outputs' values.
function todoPage(...values) {
    todoAsked = JSON.stringify(values.slice(1, -TODO_OUTPUTS));
    return [todoState(), ...values.slice(1)];
}

onUiLoaded(function() {
    const shown = new Map();
    setInterval(function() {
        for (const button of gradioApp().querySelectorAll('.todo-follow')) {
            const plan = button.parentElement.querySelector('.todo-live');
            if (!plan || !plan.offsetParent) continue; // the accordion is closed, or in another tab
            plan.setAttribute('aria-live', 'polite');
            const state = todoState() + todoAsked;
            const stale = shown.get(plan) !== state;
            shown.set(plan, state);
            if (stale || plan.querySelector('.todo-waiting')) button.click();
        }
    }, TODO_INTERVAL);
});
