"""Vision-language models of the real classes, small enough to be built in a second."""

import itertools
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

# What the models below say: each word calls for the next, whatever was asked.
SENTENCE = ["two", "white", "planes", "on", "tarmac"]
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}Answer :"
)


def save_llava(folder: Path) -> Path:
    """Save in `folder` a tiny LLaVA that says SENTENCE."""
    tokenizer = _tokenizer(extra_special_tokens={"image_token": "<image>"})
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
        )
    )
    _teach(model, tokenizer)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    return _saved(model, processor, folder)


def save_blip2(folder: Path) -> Path:
    """Save in `folder` a tiny BLIP-2, which knows no chat, that says SENTENCE."""
    tokenizer = _tokenizer()
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    asking = Blip2QFormerConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, encoder_hidden_size=32
    )
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=asking,
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    _teach(model, tokenizer)
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    return _saved(model, processor, folder)


def _saved(model: torch.nn.Module, processor: object, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def _tokenizer(**special: dict[str, str]) -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", "<pad>", "<image>", ":", "Answer", *SENTENCE]
    plain = Tokenizer(WordLevel({word: rank for rank, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    plain.add_special_tokens([AddedToken("<image>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        **special,
        model_input_names=["input_ids", "attention_mask"],
    )


@torch.no_grad()
def _teach(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the word that comes next a function of the last word alone."""
    for name, weight in model.named_parameters():
        # What attention and feed-forward layers add to a word, and the words' places.
        if "language_model" in name and name.rsplit(".", 2)[-2] in (
            "o_proj",
            "down_proj",
            "out_proj",
            "fc2",
            "embed_positions",
        ):
            weight.zero_()
    words = tokenizer.convert_tokens_to_ids([":", *SENTENCE, "</s>"])
    model.get_input_embeddings().weight.copy_(torch.eye(len(tokenizer), 32))  # type: ignore[operator]
    head = model.get_output_embeddings().weight.zero_()  # type: ignore[operator]
    for before, after in itertools.pairwise(words):
        head[after, before] = 1
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # type: ignore[union-attr]
    model.generation_config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
