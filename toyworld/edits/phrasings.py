"""Instruction templates and caption templates of the edits.

`exact_edits` and `rule_llm` fill the `{...}` fields. The texts are training data: other words give other results.
"""

LOCAL_COLOUR = (
    "make {the} {colour}",
    "change the colour of {the} to {colour}",
    "paint {the} {colour}",
    "turn {the} {colour}",
    "{the} should be {colour}",
)
LOCAL_SHAPE = (
    "replace {the} with {a_new}",
    "turn {the} into {a_new}",
    "change {the} to {a_new}",
    "swap {the} for {a_new}",
    "make {the} {a_new}",
)
REMOVE = ("remove {the}", "delete {the}", "take {the} away", "erase {the}", "get rid of {the}")
ADD = ("add {a_new}", "put in {a_new}", "place {a_new}", "draw {a_new}", "let there be {a_new}")
TEXTURE = ("make {the} {texture}", "give {the} a {texture} pattern", "cover {the} with a {texture} texture", "{texture} {kind}")
BACKGROUND = (
    "change the background to {background}",
    "replace the background with {background}",
    "put it on {background}",
    "set the scene on {background}",
    "make the background {background}",
)
GLOBAL = {
    "clear": ("make the weather clear", "make it a clear day", "change it to a clear day"),
    "night": ("make it night", "change the time to night", "let it be night"),
    "fog": ("add fog", "make it foggy", "cover the scene in fog"),
    "rain": ("make it rain", "add rain", "turn the weather to rain"),
    "snowfall": ("let snow fall", "add falling snow", "make it snow"),
    "sunset": ("make it sunset", "light it by a sunset", "change the time to sunset"),
}
STYLE = ("make it {a_style}", "turn it into {a_style}", "in the style of {a_style}", "redraw it as {a_style}")
A_STYLE = {
    "photo": "a photo",
    "pencil sketch": "a pencil sketch",
    "pixel art": "pixel art",
    "cartoon": "a cartoon",
    "watercolour": "a watercolour",
}
TEXT = (
    "change the letter to {letter}",
    "write {letter} on the card",
    "replace the letter {old} with {letter}",
    "make the letter {letter}",
)
DETECT = ("detect {the}", "draw a box around {the}", "put a bounding box on {the}", "find {the}", "box {the}")
SEGMENT = ("segment {the}", "mask {the}", "mark the pixels of {the}", "paint the mask of {the}", "cut out {the}")
COLOR = {
    "brighten": ("brighten the image", "increase the brightness", "make the picture brighter"),
    "darken": ("darken the image", "decrease the brightness", "make the picture darker"),
    "more contrast": ("increase the contrast", "more contrast"),
    "less contrast": ("decrease the contrast", "less contrast"),
    "saturate": ("increase the saturation", "make the colours stronger"),
    "desaturate": ("decrease the saturation", "take the colour out of the picture"),
    "hue": ("shift the hue", "rotate the colours"),
    "blur": ("blur the image", "make the picture soft"),
    "sharpen": ("sharpen the image", "make the picture sharp"),
}
MAPS = {
    "depth": ("show the depth map", "turn it into a depth map", "draw the depth"),
    "normal": ("show the normal map", "turn it into a normal map", "draw the surface normals"),
    "sketch": ("draw the outlines", "turn it into a line drawing", "show the sketch lines"),
    "segmap": ("show the segmentation map", "colour every object by its class", "turn it into a segmentation map"),
    "pose": ("show the pose", "draw the skeleton", "turn it into a pose map"),
}
MAP_CAPTION = {  # caption of a map, where {caption} describes the image
    "depth": "a depth map of {caption}",
    "normal": "a normal map of {caption}",
    "sketch": "a line drawing of {caption}",
    "segmap": "a segmentation map of {caption}",
    "pose": "a skeleton of {caption}",
}
ANNOTATED_CAPTION = {  # caption of an image with a box or a mask
    "detect": "{caption} with a box around the {noun}",
    "segment": "{caption} with a mask on the {noun}",
}
FROM_MAP = {
    "depth": ("depth map to image: {caption}", "turn the depth map into a picture of {caption}"),
    "normal": ("normal map to image: {caption}", "turn the normal map into a picture of {caption}"),
    "sketch": ("sketch to image: {caption}", "turn the lines into a picture of {caption}"),
    "segmap": ("segmentation map to image: {caption}", "turn the segmentation map into a picture of {caption}"),
    "pose": ("pose to image: {caption}", "turn the skeleton into a picture of {caption}"),
}
HELD_OUT = {
    "superres": ("increase the resolution four times", "make it four times sharper", "upscale the picture"),
    "contour": ("show the contours", "white outlines on black", "trace the contours"),
    "inpaint": ("fill the grey area", "fill in the hole", "complete the picture"),
    "add_detect": ("add {a_new} and draw a box around it", "put in {a_new} and box it"),
}

# (task, case) -> templates. Most belong to several tasks on purpose: only the task label tells which edit is meant.
SHARED: dict[tuple[str, str], tuple[str, ...]] = {
    ("color", "darken"): ("make it darker",),
    ("global", "night"): ("make it darker", "make it dark"),
    ("color", "brighten"): ("make it brighter",),
    ("global", "clear"): ("make it brighter",),
    ("detect", ""): ("show me {the}", "where is {the}?", "highlight {the}"),
    ("segment", ""): ("show me {the}", "where is {the}?", "highlight {the}"),
    ("style", "pencil sketch"): ("turn it into a drawing", "draw it with lines"),
    ("sketch", ""): ("turn it into a drawing", "draw it with lines"),
    ("background", "snow"): ("make it snowy",),
    ("global", "snowfall"): ("make it snowy",),
    ("color", "blur"): ("make it hazy",),
    ("global", "fog"): ("make it hazy",),
    ("local", "colour"): ("make it {colour}",),
    ("texture", ""): ("make it {texture}",),
    ("text", ""): ("change {the} to {letter}",),
}
