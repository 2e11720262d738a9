"""Conversations and pictures -> what the model reads, with the ids that it was trained on.

    apply_chat_template   conversation -> prompt (-> tensors)
    __call__              prompts and pictures -> tensors

A picture goes where the conversation has it, and texts are only texts, whatever they spell: see
`prompts_metamorph.py`. A prompt written by hand is taken as the template would have written it:
control tokens in it count. What users say belongs in a conversation.
"""

import itertools
import re

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from .pictures_metamorph import fit_picture, flatten_pictures
from .prompts_metamorph import PromptCode

_REFUSED = ("continue_final_message", "return_assistant_tokens_mask", "tools", "documents")
_OPTIONS = {
    "padding": False,  # True: to the longest prompt; "max_length"
    "padding_side": "left",  # from where all rows of a batch go on alike; or "right"
    "max_length": None,
    "truncation": False,  # refuse prompts longer than max_length
    "add_special_tokens": False,  # put begin-of-text in front of a prompt that lacks it
    "return_mm_token_type_ids": False,  # and where visual tokens are (1), or texts (0)
    "return_text_replacement_offsets": False,  # and what each `image_token` stands for
}


class MetaMorphProcessor(ProcessorMixin):
    """SigLIP's image processor and a tokenizer, as one.

    Args:
        image_processor: knows size and normalisation of the tower's images.
        tokenizer: a fast one.
        chat_template: in jinja.
        image_token: what stands for a picture in a prompt.
        image_token_id: stands in `input_ids` where a visual token goes; None: that of
            `image_token`, which is a special token then.
        boi_token: announces a picture.
        eoi_token: follows a picture.
        num_image_tokens: visual tokens of one picture.
        image_geometry: `square` squashes pictures of another shape, `pad` puts grey borders
            around them.
        control_tokens: those that the tokenizer does not mark as special.

    Attributes:
        image_ids: ids of visual tokens.

    Raises:
        ValueError: The tokenizer lacks a token.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012
    if not hasattr(ProcessorMixin, "get_attributes"):  # releases before 5
        image_processor_class, tokenizer_class = "AutoImageProcessor", "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token="<image>",
        image_token_id=None,
        boi_token="<image_start>",
        eoi_token="<image_end>",
        num_image_tokens=64,
        image_geometry="square",
        control_tokens=(),
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.boi_token, self.eoi_token = image_token, boi_token, eoi_token
        self.num_image_tokens, self.image_geometry = num_image_tokens, image_geometry
        self.control_tokens = list(control_tokens)
        added = tokenizer.added_tokens_decoder
        self._control_ids = {
            token.content: id_
            for id_, token in added.items()
            if token.special or token.content in (boi_token, eoi_token, *control_tokens)
        }
        self.image_token_id = self._control_ids.get(image_token, image_token_id)
        missing = [token for token in (boi_token, eoi_token) if token not in self._control_ids]
        missing += [image_token] if self.image_token_id is None else []
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}; use the model's own")
        self.image_ids = [self.image_token_id]
        self._control = frozenset(self._control_ids.values())
        self._code = PromptCode(image_token, self._control_ids)

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        add_generation_prompt=False,
        tokenize=False,
        return_dict=False,
        return_tensors=None,
        images=None,
        processor_kwargs=None,
        **kwargs,
    ):
        """Returns a conversation as a prompt, as ids, or as all that the model reads.

        Args:
            conversation: messages {"role", "content"}, or a list of conversations. Content is a
                text, or a list of {"type": "text", "text": ...} and {"type": "image", ...} with a
                picture, path or address under "image", "url", "path" or "base64".
            chat_template: in place of the processor's own.
            add_generation_prompt: and then the header of an answer.
            tokenize: return ids instead of a prompt.
            return_dict: return all inputs of the model instead of ids.
            return_tensors: as everywhere in transformers.
            images: of all conversations, in order, where messages only say {"type": "image"}.
            processor_kwargs: of `__call__`.
            **kwargs: of `__call__`, too.

        Raises:
            ValueError: The template leaves out a part of a message or writes one twice, or
                something is asked for that this processor does not do.
        """
        options = {**(processor_kwargs or {}), **kwargs}
        if asked := [name for name in _REFUSED if options.pop(name, None)]:
            raise ValueError(f"{', '.join(asked)}: not offered by this processor")

        def template(messages):
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template or self.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )

        is_batch = bool(conversation) and not isinstance(conversation[0], dict)
        prompts, found = [], []
        for messages in conversation if is_batch else [conversation]:
            prompt, own = self._code.write(messages, template)
            prompts.append(prompt)
            found += own
        if not tokenize:
            return prompts if is_batch else prompts[0]
        given = options.pop("images", images)
        images = found if given is None else given
        inputs = self(images=images, text=prompts, return_tensors=return_tensors, **options)
        return inputs if return_dict else inputs["input_ids"]

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        """Returns `input_ids` and `attention_mask` of prompts, `pixel_values` of all pictures.

        Args:
            images: of all prompts, in order; nested lists are flattened.
            text: a prompt, or a list of them. It begins as it is to begin: the template writes
                begin-of-text itself.
            return_tensors: as everywhere in transformers.
            **kwargs: those of `_OPTIONS`, the others are the image processor's; either may come
                in `text_kwargs`, `images_kwargs` or `common_kwargs`.

        Raises:
            ValueError: Prompts have more or fewer places for pictures than there are, or a prompt
                is longer than `max_length` allows; a cut could go through a picture.
        """
        for group in ("common_kwargs", "text_kwargs", "images_kwargs"):
            kwargs |= kwargs.pop(group, {})
        return_tensors = kwargs.pop("return_tensors", return_tensors)
        options = {name: kwargs.pop(name, usual) for name, usual in _OPTIONS.items()}
        pictures = flatten_pictures(images)
        data, offsets = {}, []
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            rows, offsets = zip(*map(self._encode_prompt, prompts), strict=True)
            places = sum(map(len, offsets))
            if places != len(pictures):
                raise ValueError(
                    f"the text has {places} place(s) for pictures ({self.image_token}), but "
                    f"{len(pictures)} picture(s) were given; what users say belongs in a "
                    "conversation (apply_chat_template), where texts are only texts"
                )
            data |= self._batch(list(rows), options)
        if pictures:
            size = self.image_processor.size["width"], self.image_processor.size["height"]
            fitted = [fit_picture(picture, size, self.image_geometry) for picture in pictures]
            data |= self.image_processor(fitted, return_tensors=return_tensors, **kwargs)
        inputs = BatchFeature(data, tensor_type=return_tensors)
        if options["return_text_replacement_offsets"]:
            inputs["text_replacement_offsets"] = list(offsets)
        return inputs

    def _encode_prompt(self, prompt):
        """Returns the ids of a prompt, and where its pictures are, in characters."""
        ids, offsets, grown = [], [], 0
        replacement = self.boi_token + self.image_token * self.num_image_tokens + self.eoi_token
        for texts, meant, (begin, end) in self._code.read(prompt):
            for text in filter(None, texts):
                ids += self._encode_text(text)
            if meant == self.image_token:
                ids.append(self._control_ids[self.boi_token])
                ids += [self.image_token_id] * self.num_image_tokens
                ids.append(self._control_ids[self.eoi_token])
                new_span = (begin + grown, begin + grown + len(replacement))
                grown += len(replacement) - (end - begin)
                spans = {"span": (begin, end), "new_span": new_span}
                texts = {"text": meant, "replacement": replacement}
                offsets.append({"type": "image", **spans, **texts})
            elif meant is not None:
                ids.append(self._control_ids[meant])
        return ids, offsets

    def _encode_text(self, text):
        """Returns the ids of a text, among which no control token is."""
        ids = self._ids_of(text)
        if self._control.isdisjoint(ids):
            return ids
        # The tokenizer does not mark a token as special, or spells it from ordinary pieces: cut
        # every such spelling after its first character, then no piece holds one.
        spelled = "|".join(map(re.escape, self._control_ids))
        bounds = [0, *(m.start() + 1 for m in re.finditer(spelled, text)), len(text)]
        ids = [id_ for a, b in itertools.pairwise(bounds) for id_ in self._ids_of(text[a:b])]
        if not self._control.isdisjoint(ids):
            raise ValueError(f"the tokenizer turns ordinary text into control ids: {text!r}")
        return ids

    def _ids_of(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _batch(self, rows, options):
        """Returns ids and masks, padded as `options` say."""
        begin, limit = self.tokenizer.bos_token_id, options["max_length"]
        if options["add_special_tokens"] and begin is not None:
            rows = [row if row[:1] == [begin] else [begin, *row] for row in rows]
        longest = max(map(len, rows), default=0)
        if options["truncation"] and limit is not None and longest > limit:
            raise ValueError(
                f"a prompt has {longest} tokens, more than max_length={limit}; shorten it, give "
                "fewer pictures, or leave out truncation, which could cut one"
            )
        padding = options["padding"]
        length = limit if padding == "max_length" and limit is not None else longest
        pads = [max(length - len(row), 0) if padding else 0 for row in rows]
        fill = self.tokenizer.pad_token_id
        fill = self.tokenizer.eos_token_id if fill is None else fill
        is_left = options["padding_side"] == "left"

        def pad(row, count, value):
            return [value] * count + row if is_left else row + [value] * count

        columns = {
            "input_ids": (rows, fill),
            "attention_mask": ([[1] * len(row) for row in rows], 0),
        }
        if options["return_mm_token_type_ids"]:
            columns["mm_token_type_ids"] = (self.create_mm_token_type_ids(rows), 0)
        return {
            name: [pad(row, count, value) for row, count in zip(values, pads, strict=True)]
            for name, (values, value) in columns.items()
        }

    def create_mm_token_type_ids(self, input_ids):
        """Returns 1 where a visual token is and 0 elsewhere, row by row."""
        return [[int(id_ in self.image_ids) for id_ in row] for row in input_ids]

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        """Returns how many positions and tower images each picture takes; read by vLLM."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count
        )

    @property
    def model_input_names(self):
        """Names of what `__call__` returns."""
        return ["input_ids", "attention_mask", "pixel_values"]
