// Asks for the live plan when something that it depends on has changed and come to rest. It looks at the page itself,
// for values that the WebUI sets (a pasted infotext, "Send to img2img") raise no event there. Looking costs the server
// nothing. Nothing is asked while the accordion is closed, in another tab, or the whole page is hidden.
(() => {
    const LOOK = 100; // milliseconds from look to look
    const REST = 300; // without a change
    const WAIT = 5000; // at least, between two questions for a checkpoint that is not loaded
    const LOST = 30000; // until an answer counts as lost

    // name in todo_lib/webui/plan_view.py -> id of the WebUI's control
    const txt2img = {
        width: 'txt2img_width', height: 'txt2img_height',
        sampler: 'txt2img_sampling', scheduler: 'txt2img_scheduler', steps: 'txt2img_steps',
        hires: 'txt2img_hr-checkbox',
        hr_scale: 'txt2img_hr_scale', hr_width: 'txt2img_hr_resize_x', hr_height: 'txt2img_hr_resize_y',
        hr_steps: 'txt2img_hires_steps', denoising: 'txt2img_denoising_strength',
        hr_sampler: 'hr_sampler', hr_scheduler: 'hr_scheduler', hr_checkpoint: 'hr_checkpoint',
    };
    const img2img = {
        width: 'img2img_width', height: 'img2img_height', scale: 'img2img_scale',
        sampler: 'img2img_sampling', scheduler: 'img2img_scheduler', steps: 'img2img_steps',
        denoising: 'img2img_denoising_strength',
    };
    const HOST = {txt2img, img2img};

    // The value of a control; undefined where there is no such control, null while its number is being typed anew.
    function valueOf(part) {
        if (!part) return undefined;
        const radio = part.querySelector('input[type=radio]');
        const box = radio ? part.querySelector('input[type=radio]:checked') :
            part.querySelector('input[type=number]') || part.querySelector('input');
        if (!box) return undefined;
        if (box.type === 'checkbox') return box.checked;
        if (box.type === 'number') return box.value === '' ? null : Number(box.value);
        return box.value;
    }

    // What the plan of a tab depends on: the values of ToDo's controls and of the WebUI's; of the tab "Resize by" of
    // img2img, whether it is selected, and the size of the image that it scales; and the name of the selected
    // checkpoint, empty where the page does not show it. Null where there is nothing to be planned now.
    function stateOf(tab) {
        const root = gradioApp();
        const prefix = `script_${tab}_todo_`;
        if (valueOf(root.getElementById(`${prefix}enabled-checkbox`)) === false) return null;
        const ours = {}, host = {};
        for (const part of root.querySelectorAll(`[id="${prefix}enabled"] [id^="${prefix}"]`)) {
            ours[part.id.slice(prefix.length)] = valueOf(part);
        }
        for (const [name, id] of Object.entries(HOST[tab])) host[name] = valueOf(root.getElementById(id));
        if ([...Object.values(ours), ...Object.values(host)].includes(null)) return null;
        const by = root.querySelector('#img2img_tab_resize_by');
        const checkpoint = valueOf(root.querySelector('#setting_sd_model_checkpoint, .model_selection'));
        return JSON.stringify({
            ours, host,
            by: Boolean(by) && by.style.display !== 'none',
            image: tab === 'img2img' ? currentImg2imgSourceResolution(0, 0, 0).slice(0, 2) : [0, 0],
            checkpoint: checkpoint || '',
        });
    }

    // Of each tab: the state that was seen last, and when; the one that was asked with last, and when; whether there was
    // a generation when it was looked at; the latest
    // answer; and the host's name of the latest measuring.
    const tabs = {txt2img: {}, img2img: {}};
    let held = false; // whether a button is held down: a slider that is held still has not come to rest
    let pending = 0; // since when an answer is awaited; gradio may drop what is asked meanwhile

    // Called by gradio when a plan is asked for, with a click on the button.
    window.todoAsk = function(tab) {
        pending = tabs[tab].at = performance.now();
        tabs[tab].asked = tabs[tab].seen;
        return [tabs[tab].seen];
    };

    // Called by gradio after the answer. Returns the updates of the plan, and of the controls that it may grey.
    window.todoAnswered = function(tab, answer) {
        pending = 0;
        const {plan, effects} = JSON.parse(answer);
        const same = answer === tabs[tab].answer;
        tabs[tab].answer = answer;
        const updates = [{value: plan}, ...effects.map((on) => ({interactive: on, mode: on ? 'dynamic' : 'static'}))];
        return updates.map((update) => ({...(same ? {} : update), __type__: 'update'})); // `mode` is gradio 3's word
    };

    // Called by gradio when the button "Measure here" is clicked: the host's name of the task, and what is measured.
    window.todoMeasure = function(tab) {
        const buttons = gradioApp().getElementById(`script_${tab}_todo_measuring`);
        tabs[tab].task = randomId();
        buttons.classList.add('todo-busy');
        const stop = gradioApp().getElementById(`script_${tab}_todo_stop`); // the bar stands before it
        requestProgress(tabs[tab].task, stop, null, () => buttons.classList.remove('todo-busy'));
        return [tabs[tab].task, stateOf(tab)];
    };

    // Called by gradio when its measuring is to be interrupted.
    window.todoStop = (tab) => [tabs[tab].task || ''];

    function look(tab, plan, button) {
        const now = performance.now(), known = tabs[tab];
        const state = stateOf(tab);
        if (held || state !== known.seen) {
            known.seen = state;
            known.since = now;
        }
        const generating = Boolean(gradioApp().querySelector('.progressDiv'));
        const ended = known.generating && !generating;
        known.generating = generating;
        if (state === null || (pending && now - pending < LOST)) return;
        const changed = state !== known.asked && now - known.since >= REST;
        const waiting = state === known.asked && plan.querySelector('.todo-waiting');
        if (changed || (waiting && (ended || now - known.at >= WAIT))) button.click();
    }

    for (const [event, down] of [['pointerdown', true], ['pointerup', false], ['pointercancel', false]]) {
        window.addEventListener(event, () => { held = down; }, true);
    }

    onUiLoaded(() => setInterval(() => {
        if (document.hidden) return;
        for (const tab of Object.keys(tabs)) {
            const accordion = gradioApp().getElementById(`script_${tab}_todo_enabled`);
            const plan = accordion && accordion.querySelector('.todo-live');
            if (!plan || !plan.offsetParent) continue;
            if (!plan.hasAttribute('aria-live')) plan.setAttribute('aria-live', 'polite');
            look(tab, plan, gradioApp().getElementById(`script_${tab}_todo_ask`));
        }
    }, LOOK));
})();
