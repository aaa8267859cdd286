"""Requests and responses of the HTTP API: the OpenAI images API, and the settings that diffusion users add."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from adadiff.utils.ranges import Fraction, GuidanceScale, Seed

MOST_IMAGES = 10
MOST_JOB_IMAGES = 100_000
MOST_STEPS = 250
MOST_PARTIAL_IMAGES = 3
LONGEST_PROMPT = 2000  # characters
LARGEST_BODY = 64 * 1024  # bytes
CHOICES = {
    "plan": 'choose "own", "full" or a budget of compute, a number in [0, 1]',
    "class_label": f"give a class by its name, in at most {LONGEST_PROMPT} characters, or by its index",
}
"""What may be given for settings of several types; pydantic's own error names the first type alone."""

ImageFormat = Literal["png", "jpeg", "webp"]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class ImageSettings(BaseModel):
    """The settings of images; one that is left out, or null, is the model's own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the model; by default the one that is served.")
    prompt: Prompt | None = Field(None, description="Text to draw; for a model that takes classes, the class's name.")
    class_label: Annotated[str, Field(max_length=LONGEST_PROMPT)] | int | None = Field(
        None, description="Class, by name or index, for a model that takes classes."
    )
    seed: Seed | None = Field(None, description="Image k is made from seed + k alone; by default a seed is drawn.")
    negative_prompt: Prompt | None = Field(None, description="Text that guidance leads away from.")
    num_inference_steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="Number of sampling steps.")
    guidance_scale: GuidanceScale | None = Field(
        None, le=1000, description="Scale of classifier-free guidance; 1 means no guidance."
    )
    plan: Literal["own", "full"] | Fraction = Field(
        "own",
        description='"own": the model\'s own plan; "full": all layers, by default in the default number of steps; '
        "or a budget: the most expensive plan on offer with at most that fraction of the full model's FLOPs.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        """Name the settings that there are, which pydantic's own error does not."""
        unknown = [name for name in values if name not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            known = ", ".join(cls.model_fields)
            message = f"there is no setting {_printable(unknown[0])!r}: choose from {known}"
            raise PydanticCustomError("unknown_setting", "{message}", {"message": message})
        return values


class GenerationRequest(ImageSettings):
    """The body of `POST /v1/images/generations`; a setting that is left out, or null, is the model's own."""

    n: int = Field(1, ge=1, le=MOST_IMAGES, description="Number of images.")
    size: str | None = Field(None, max_length=20, description='"auto", or the size of the model\'s images.')
    output_format: ImageFormat = Field("png", description="File format of the images.")
    output_compression: int = Field(100, ge=0, le=100, description="Quality of JPEG and WebP files.")
    response_format: Literal["b64_json"] = Field("b64_json", description="Images come in the response, as base64.")
    stream: bool = Field(False, description="Send server-sent events instead of one response.")
    partial_images: int = Field(
        0, ge=0, le=MOST_PARTIAL_IMAGES, description="Previews of each image, sent while it is made; with stream."
    )
    quality: Literal["auto"] | None = Field(None, description="For clients of other services: only auto.")
    background: Literal["auto", "opaque"] | None = Field(None, description="For clients of other services: opaque.")
    user: str | None = Field(None, max_length=LONGEST_PROMPT, description="For clients of other services: ignored.")


class Cost(BaseModel):
    """What one image took."""

    seed: int = Field(description="With n = 1 this seed gives the same image again.")
    seconds: float = Field(description="Seconds from the request to the finished image.")
    layer_fraction: float = Field(description="Layers run over those of the model, averaged over the image's steps.")
    compute_fraction: float = Field(
        description="FLOPs over those of the full model: all layers at the default number of steps and guidance scale."
    )
    exit_layers: list[int] = Field(description="Number of layers run at each step.")


class GeneratedImage(Cost):
    """One image of a response."""

    b64_json: str = Field(description="The image file, in base64.")


class GenerationResponse(BaseModel):
    """The response to `POST /v1/images/generations` without streaming."""

    created: int = Field(description="Unix time in seconds.")
    data: list[GeneratedImage]
    output_format: ImageFormat
    size: str
    background: Literal["opaque"] = "opaque"
    model: str
    plan: str | float = Field(description='The plan taken: "own", "full", or the name of a plan on offer.')
    steps: int
    guidance_scale: float
    seed: int = Field(description="Seed of the first image.")
    seconds: float = Field(description="Seconds until the last image.")
    layer_fraction: float = Field(description="Mean over the images.")
    compute_fraction: float = Field(description="Mean over the images.")
    warning: str | None = Field(None, description="Where the plan is used with other settings than it was made for.")


class StreamEvent(BaseModel):
    """The fields that all events of a stream have."""

    b64_json: str
    created_at: int
    output_format: ImageFormat
    size: str
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    image_index: int = Field(description="Number of the image in the request, from 0.")


class PartialImage(StreamEvent):
    """A preview: the image as it is estimated at a step."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="Number of the preview of this image, from 0.")
    step: int = Field(description="Steps taken.")
    steps: int


class Completed(StreamEvent, Cost):
    """A finished image."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    warning: str | None = None


class JobRequest(ImageSettings):
    """The body of `POST /v1/jobs`; a setting that is left out, or null, is the model's own."""

    n: int = Field(ge=1, le=MOST_JOB_IMAGES, description="Number of images.")


class JobInfo(BaseModel):
    """A job: what was asked, and how far it is."""

    id: str
    object: Literal["job"] = "job"
    created: int = Field(description="Unix time in seconds.")
    state: Literal["queued", "running", "finished", "cancelled", "failed"]
    done: int = Field(description="Images made so far.")
    n: int = Field(description="Images in all.")
    seconds: float = Field(description="Seconds for which the job has run.")
    message: str | None = Field(description="Why the job failed.")
    seed: int = Field(description="Image k is the one of a request with seed + k.")
    class_label: int | str | None = Field(description="Index of the class.")
    prompt: str | None
    negative_prompt: str | None
    plan: str | float
    steps: int
    guidance_scale: float
    warning: str | None = Field(description="Where the plan is used with other settings than it was made for.")


class JobList(BaseModel):
    """The response to `GET /v1/jobs`: all jobs, the oldest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]


class JobDeleted(BaseModel):
    """The response to `DELETE /v1/jobs/{id}`."""

    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence."""

    message: str
    type: str
    code: str


class ErrorResponse(BaseModel):
    """The body of every response that is an error."""

    error: ErrorDetail


class PlanInfo(BaseModel):
    """A plan that requests can choose."""

    plan: str | float = Field(description='"own", "full", or a plan\'s compute in hundredths.')
    compute_fraction: float | None = Field(
        description="FLOPs over those of the full model; null where they depend on the samples."
    )
    steps: int
    guidance_scale: float
    guidance: str = Field(description="What guides, in words: the scale, internal guidance, and the steps of either.")


class ModelInfo(BaseModel):
    """A model that is served, and what requests to it can choose."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "adadiff"
    takes: Literal["class", "prompt", "class and prompt", "nothing"]
    classes: list[str] | None = Field(description="Names of the classes; null if they have none, or there are none.")
    class_indices: list[int]
    size: str
    depth: int = Field(description="Layers of the full model.")
    steps: int = Field(description="Of the full model, by default.")
    guidance_scale: float = Field(description="Of the full model, by default.")
    can_guide: bool
    scheduler: str = Field(description="Of the full model.")
    plans: list[PlanInfo]


class ModelList(BaseModel):
    """The response to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class RunningSample(BaseModel):
    """A sample in the running batch."""

    request: int
    image: int
    step: int
    steps: int
    depth: int = Field(description="Layers that it runs at its step.")
    ran: bool = Field(description="Whether it was in the last call of the model.")


class EngineStatus(BaseModel):
    """The response to `GET /v1/engine`: who runs, at which step and depth."""

    ready: bool
    slots: int
    waiting: int = Field(description="Images that wait for a slot.")
    running: list[RunningSample]
    rows_of_last_tick: int
    ticks: int
    images_done: int
    images_per_second: float
    layer_fraction: float | None = Field(description="Layers run over those of the full model; null before the first.")
    rejected: int


def validation_message(errors: list[Any]) -> str:
    """Return one sentence for the first of pydantic's errors about a request.

    Examples:
        >>> from pydantic import ValidationError
        >>> try:
        ...     GenerationRequest.model_validate({"n": 99})
        ... except ValidationError as error:
        ...     validation_message(error.errors())
        'n: input should be less than or equal to 10'
    """
    first = errors[0]
    if first["type"] == "unknown_setting":
        return str(first["msg"])
    if first["type"] == "json_invalid":
        return "the body is not JSON: send an object with the settings of the images"
    place = [part for part in first["loc"] if part != "body"]
    if not place:
        return "the body is not a JSON object: send one, with the header Content-Type: application/json"
    name = _printable(place[0])
    if name in CHOICES:
        return f"{name}: {CHOICES[name]}"
    message = str(first["msg"])
    return f"{name}: {message[:1].lower()}{message[1:]}".encode("utf-8", "backslashreplace").decode()


def _printable(name: Any) -> str:
    """Return the name of a setting, as a request has it, in at most 40 characters of ASCII or their escapes."""
    return str(name)[:40].encode("ascii", "backslashreplace").decode()
