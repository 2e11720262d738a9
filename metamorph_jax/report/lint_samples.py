"""Records as the model reads them: what it learns to say coloured, images in their places."""

from PIL import Image

from metamorph_jax.data.lint.survey import Sample, Survey
from metamorph_jax.data.spans import ImageSpan, TextSpan
from metamorph_jax.errors import visible
from metamorph_jax.report import page
from metamorph_jax.report.page import Html, element, join
from metamorph_jax.report.pictures import shrunk

_THUMBNAIL = 144  # pixels
_MIN_SHOWN = 96  # CSS pixels; smaller images are blown up
_MAX_NAME = 40
_MAX_TEXT = 4000  # characters of one span; a page is for looking, not for archives
_MAX_IMAGES = 12  # shown of one sample, for the size of the page
SAMPLE_STYLE = """
.sample { border: 1px solid var(--line); border-radius: .4rem; margin: .7rem 0 1.1rem;
  break-inside: avoid; }
.sample > .quiet { font-size: .84rem; padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
.words { padding: .7rem .8rem; font-size: .92rem; line-height: 1.65; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 34rem; overflow-y: auto; color: #6b7580; }
.words .learned { background: #dcf1e4; color: #0e4429; border-radius: .15rem; padding: .1rem 0;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.words .control { font: .74em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  color: #98a2aa; }
.words .learned.control { color: #4f9a70; }
.slot { display: inline-block; vertical-align: top; margin: .3rem .3rem .3rem 0; padding: 3px;
  border: 1px solid var(--line); border-radius: .25rem; font-size: .72rem; line-height: 1.3;
  white-space: normal; background: #fff; min-width: 6.5rem; }
.slot img { display: block; margin-bottom: .15rem; }
.slot img[width="96"] { image-rendering: pixelated; }
.slot span { display: block; width: 0; min-width: 100%; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.slot.target { border: 3px solid #18794e; padding: 1px; color: #0e4429; }
.kind { font-weight: 600; margin: 1.2rem 0 .3rem; }
.key .slot { max-width: none; padding: .05rem .4rem; margin: 0; }
.key { align-items: baseline; padding: .2rem 0;
  font-size: .86rem; display: flex; flex-wrap: wrap; gap: 1.4rem; max-height: none; }
"""


def sample_blocks(survey: Survey) -> list[object]:
    """Returns samples of each kind, and a key to their colours."""
    if not survey.samples:
        return [page.paragraph("No record can be trained on, so there is nothing to show.")]
    blocks: list[object] = [_key(survey)]
    for kind in dict.fromkeys(sample.kind for sample in survey.samples):
        of_kind = [sample for sample in survey.samples if sample.kind == kind]
        blocks.append(element("p", kind, class_="kind"))
        blocks += [_sample(sample) for sample in of_kind]
    return blocks


def _key(survey: Survey) -> Html:
    size = survey.stage.image_size
    learned = element("span", "learned", class_="learned")
    control = element("span", "<|control|>", class_="control")
    target = element("span", "image to be predicted", class_="slot target")
    seen = element(
        "span", f"image that is read, at {size}x{size} as the tower gets it", class_="slot"
    )
    parts = [join(["prompt"]), learned, control, seen, target]
    return element("div", join(element("span", part) for part in parts), class_="words key")


def _sample(sample: Sample) -> Html:
    tokens = f" · {sample.length:,} tokens" * (sample.length > 0)
    images = sum(isinstance(span, ImageSpan) for span in sample.spans)
    counted = f" · {images} image{'s' * (images > 1)}" * (images > 0)
    head = element("div", f"{visible(sample.where)}{tokens}{counted}", class_="quiet")
    words = join(
        _text(span) if isinstance(span, TextSpan) else _image(span, sample) for span in sample.spans
    )
    return element("div", join([head, element("div", words, class_="words")]), class_="sample")


def _text(span: TextSpan) -> Html:
    classes = ["learned"] * span.is_supervised + ["control"] * span.is_control
    shown = visible(span.text[:_MAX_TEXT])
    if len(span.text) > _MAX_TEXT:
        shown += f" … ({len(span.text) - _MAX_TEXT:,} more characters)"
    return element("span", shown, class_=" ".join(classes)) if classes else page.text(shown)


def _image(span: ImageSpan, sample: Sample) -> Html:
    name = visible(span.media) or "image"
    short = name[-_MAX_NAME:] if isinstance(span.media, str) else name  # paths differ at the end
    number = f"{span.num_tokens} visual {'targets' if span.is_answer else 'tokens'}"
    shown = Html()
    if sample.pixels and span.number < _MAX_IMAGES:
        picture = Image.fromarray(sample.pixels[span.number])
        width = min(max(picture.width, _MIN_SHOWN), _THUMBNAIL)
        shown = page.image(shrunk(picture, _THUMBNAIL), name, width)
    lines = [element("span", short), element("span", number) if span.num_tokens else ""]
    target = " target" * span.is_answer
    return element("span", join([shown, *lines]), class_=f"slot{target}", title=name)
