// The viewer of scripts/app.py: the slider moves the line between photo and result, small pictures choose the photo.
element.addEventListener('input', event => element.style.setProperty('--at', event.target.value + '%'));
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-number]');
  if (button) trigger('select', {index: Number(button.dataset.number)});
});
