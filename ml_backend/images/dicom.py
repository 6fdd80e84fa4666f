"""DICOM files to 8-bit grey levels, and the few fields that may leave them.

Only the elements in ``_READ`` are parsed; of the text in a file nothing else reaches memory that this backend keeps.
pydicom and imagecodecs, of the extra ``dicom``, are imported where they are used.
"""

import functools
import importlib
import io
import logging
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image

from ml_backend import extras
from ml_backend.errors import ImageError, ImageErrorKind, MissingExtra
from ml_backend.images.burned_in import text_at_borders
from ml_backend.images.limits import MAX_BYTES, MAX_PIXELS, MAX_SCANS, budget

Gray: TypeAlias = npt.NDArray[np.uint8]

_READ: Final = """
    SOPClassUID StudyDate Modality PatientID ViewPosition ViewCodeSequence CodeMeaning ImageType ConversionType
    BurnedInAnnotation

    Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit PixelAspectRatio PixelSpacing
    ImagerPixelSpacing NominalScannedPixelSpacing PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable
    ExtendedOffsetTableLengths

    ModalityLUTSequence RescaleSlope RescaleIntercept VOILUTSequence WindowCenter WindowWidth VOILUTFunction
    LUTDescriptor LUTData RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData
    BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
"""

# A data set without the preamble of 128 bytes: a first element of group 2 or 8, with its type or its length; or
# the same in big-endian.
_BARE: Final = re.compile(
    rb"(?:\x02\x00[\x00\x01\x02\x10\x12]\x00|\x08\x00[\x00\x01\x05\x08\x12\x14\x16\x18\x20]\x00)(?:[A-Z]{2}|..\x00\x00)"
    rb"|\x00[\x02\x08]\x00[\x00\x01\x02\x05\x08\x10\x12\x14\x16\x18\x20][A-Z]{2}",
    re.DOTALL,
)
_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"

_UID: Final = r"[0-2](?:\.\d+)+"
_MODALITIES: Final = (
    "AR|BDUS|BI|BMD|CR|CT|DG|DR|DX|ECG|ES|GM|HC|IO|IVOCT|IVUS|MG|MR|NM|OCT|OP|OPM|OPT|OT|PT|PX|RF|RG|RTIMAGE|SC|SM|"
    "TG|US|VA|XA|XC"
)
# The word -> how ViewPosition and the meanings of view codes give it, in capitals, with spaces between.
_VIEWS: Final = {
    "LL": r"LL|(L|LEFT) ?LAT(ERAL)?|LAT(ERAL)? (L|LEFT)",
    "RL": r"RL|(R|RIGHT) ?LAT(ERAL)?|LAT(ERAL)? (R|RIGHT)",
    "LATERAL": r"(?!.*(OBL|DECUB))(.* )?([LR]?LAT(ERAL[A-Z]*)?|LATERO ?MEDIAL|(LATERO|MEDIO)LATERAL)( .*)?",
    "PA": r"(PA|POSTERO ?ANTERIOR)( (?!.*OBL).*)?",
    "AP": r"(AP|ANTERO ?POSTERIOR)( (?!.*OBL).*)?",
    "FRONTAL": r"FRONTAL( (?!.*OBL).*)?",
    **{view: view for view in ("LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "ML", "LM", "LMO")},
    "CC": r"CC|CRANIO ?CAUDAL",
    "MLO": r"MLO|MEDIO ?LATERAL OBLIQUE",
}

UNKNOWN_VIEW: Final = "UNKNOWN"
"""Of a file that names a view, but none of these."""

# Pixels, but of dose or of drawn regions: no picture to read.
_DERIVED: Final = ("RT Dose Storage", "Segmentation Storage")

_PERCENTILES: Final = (0.5, 99.5)
_LOADING = threading.Lock()


class NotAnImage(ImageError):
    """A DICOM object that holds no picture, such as a report; the message names its kind."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "not-an-image")


@dataclass(frozen=True, eq=False, slots=True)
class DicomImage:
    """A DICOM image as it is shown, and what may be known of it.

    Attributes:
        pixels: grey levels, 0 black to 255 white, with square pixels, at full resolution.
        fields: ``patient_id``, ``study_date`` (YYYYMMDD), ``view`` (``PA``, ``AP``, ``LL``, ``RL``, ``LATERAL``, ...,
            or ``UNKNOWN_VIEW``) and ``modality``, as the file gives them; "" where it does not, or where the value is
            not one that the standard defines.
        burned_in: why text may be burned into the pixels: the file says so, or is of a kind that often has some, or
            text was found at a border; "" without a reason.
    """

    pixels: UInt8[Gray, "height width"]
    fields: dict[str, str]
    burned_in: str


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM by its first bytes, with the preamble or without it."""
    return content[128:132] == b"DICM" or _BARE.match(content) is not None


def read_dicom(content: bytes, *, first_frame: bool = False) -> DicomImage:
    """Render a DICOM file, and read the fields that may leave it.

    Args:
        content: the file.
        first_frame: read the first frame of a multi-frame file, which is refused otherwise.

    Raises:
        NotAnImage: a report, a PDF, a directory, a presentation state, a dose or another object without a picture.
        ImageError: damaged, cut off, too large, of several frames, or coded in a way that is not read.
        See ``render_dicom``.
    """
    dataset = open_dicom(content, first_frame=first_frame)
    with _as_image_error():
        fields, declared = _fields(dataset), _declared_text(dataset)
    pixels = render_dicom(dataset)
    return DicomImage(pixels, fields, declared or text_at_borders(pixels))


def open_dicom(content: bytes, *, first_frame: bool = False) -> Any:
    """Parse a DICOM file and check that ``render_dicom`` may decode it; see ``read_dicom``."""
    try:
        extras.require("dicom", "reading DICOM")
    except MissingExtra as error:
        raise ImageError(f"a DICOM file: {error}", "refused") from error  # and tried again: it may be installed by then
    if len(content) > MAX_BYTES:
        raise ImageError(f"a DICOM file too large: {len(content):,} bytes, at most {MAX_BYTES:,} are read", "too-large")
    if not content:
        raise ImageError("the file is empty: export the image again", "empty")
    with _as_image_error():
        dataset = _pydicom().dcmread(_Inflated(_inflated(content)), force=True, specific_tags=_READ.split())
        _require_picture(dataset)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1 and not first_frame:
            raise ImageError(
                f"a DICOM file of {frames:,} frames, and one image is expected: export the frame to label as a file",
                "unsupported",
            )
        width, height = int(dataset.Columns), int(dataset.Rows)
        if width * height > MAX_PIXELS:
            raise _too_large(width, height)
    return dataset


def render_dicom(dataset: Any) -> UInt8[Gray, "height width"]:
    """Grey levels of the first frame, as PS3.3 C.11 has them shown.

    The modality LUT or rescale, then the VOI LUT, or the first window (linear, linear exact or sigmoid). Without
    either, unsigned pixels of up to 8 bits keep their values, and those of more are spread from the 0.5th to the 99.5th
    percentile of what is no padding. MONOCHROME1 is inverted. Palettes and colours become ITU-R 601 grey. Pixels that
    are not square are enlarged along their longer side. Overlays are not drawn.

    Args:
        dataset: of ``open_dicom``.

    Raises:
        ImageError: see ``read_dicom``.
    """
    with (
        _as_image_error(),
        budget.hold(
            int(dataset.Rows)
            * int(dataset.Columns)
            * int(dataset.get("SamplesPerPixel") or 1)
            * (4 if int(dataset.BitsAllocated) > 16 else 1)
        ),
    ):
        levels = _decoded(dataset)
        most = 2 ** int(dataset.BitsStored) - 1
        photometric = str(dataset.PhotometricInterpretation)
        if photometric == "PALETTE COLOR":
            if not _transfer_syntax(dataset).is_little_endian and "RedPaletteColorLookupTableData" in dataset:
                raise ImageError(
                    "a DICOM file with a palette in big-endian: export it again", "unsupported"
                )  # pydicom's
            levels = _pydicom().pixels.apply_color_lut(levels, dataset)
            bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
            most = 2 ** min(bits, 8 * levels.dtype.itemsize) - 1
        if levels.ndim == 3:
            if levels.dtype != np.uint8 or most != 255:
                levels = np.rint(np.clip(levels.astype(np.float32) * (255 / most), 0, 255)).astype(np.uint8)
            gray = np.asarray(Image.fromarray(np.ascontiguousarray(levels[..., :3])).convert("L"))
        else:
            gray = _shaded(levels, dataset)
        return _with_square_pixels(255 - gray if photometric == "MONOCHROME1" else gray, dataset)


def _pydicom() -> Any:
    with _LOADING:  # images are read by several threads
        return _loaded()


@functools.cache
def _loaded() -> Any:
    pydicom: Any = importlib.import_module("pydicom")
    importlib.import_module("pydicom.pixels")
    # What it logs may quote the file.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its children too
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for uid in DECODER_DEPENDENCIES:
        pydicom.pixels.get_decoder(uid).add_plugin("imagecodecs", (__name__, "decode_frame"))
    return pydicom


class _Inflated(io.BytesIO):
    """Of a data set that pydicom still holds for deflated, it would read all the rest, and inflate it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise ImageError("a deflated DICOM file whose head gives a wrong length: export it again", "damaged")
        return super().read(size)


def _inflated(content: bytes) -> bytes:
    """The same file without the deflation of its data set, which pydicom undoes without a limit."""
    # The meta elements begin with the length of the others.
    end = 144 + int.from_bytes(content[140:144], "little")
    head = content[:end]
    if _DEFLATED not in head:
        return content
    inflator = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflator.decompress(content[end:], MAX_BYTES)
    if inflator.unconsumed_tail:
        raise ImageError(f"a deflated DICOM file of more than {MAX_BYTES:,} bytes", "too-large")
    return head.replace(_DEFLATED, _EXPLICIT) + body


def _require_picture(dataset: Any) -> None:
    name = _sop_class(dataset)
    if name in _DERIVED or dataset.get("Modality") in ("RTDOSE", "SEG"):
        raise NotAnImage(f"a DICOM object without a picture: {name}")
    if "PixelData" in dataset:
        needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
        if missing := [keyword for keyword in needed if dataset.get(keyword) in (None, "")]:
            raise ImageError(f"a DICOM image without {', '.join(missing)}: export it again", "damaged")
        shown = "MONOCHROME[12]|PALETTE COLOR|RGB|YBR_(FULL|FULL_422|PARTIAL_42[02]|ICT|RCT)"
        if not re.fullmatch(shown, str(dataset.PhotometricInterpretation)):
            raise ImageError("a DICOM image neither of grey levels, nor of a palette, RGB or YBR", "unsupported")
        return
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError("a DICOM file of floating-point pixels, which is not read", "unsupported")
    if "Image Storage" in name or "Rows" in dataset:
        raise ImageError("a DICOM image without its pixels: cut off, or never sent: export it again", "damaged")
    if not name:
        raise ImageError("a DICOM file that is cut off before it says what it holds: export it again", "damaged")
    raise NotAnImage(f"a DICOM object without a picture: {name}")


def _fields(dataset: Any) -> dict[str, str]:
    def defined(keyword: str, pattern: str) -> str:
        value = str(_first(dataset.get(keyword)) or "").strip()
        return value if re.fullmatch(pattern, value) else ""

    codes = dataset.get("ViewCodeSequence") or [{}]
    day = str(dataset.get("StudyDate") or "").replace(".", "")  # as the standard had them before 1993
    try:
        date.fromisoformat(day)
    except ValueError:
        day = ""
    return {
        "patient_id": str(dataset.get("PatientID") or "").strip(),
        "study_date": day if re.fullmatch(r"\d{8}", day) else "",
        "view": known_view(dataset.get("ViewPosition"), codes[0].get("CodeMeaning")),
        "modality": defined("Modality", _MODALITIES),
    }


def known_view(*names: Any) -> str:
    """The view that the first known name means; ``UNKNOWN_VIEW`` where none is known, "" where none is given."""
    texts = [" ".join(re.findall(r"[^\W\d_]+", str(_first(name) or "").upper())) for name in names]
    known = (view for text in texts for view, pattern in _VIEWS.items() if re.fullmatch(pattern, text))
    return next(known, UNKNOWN_VIEW if any(texts) else "")


def _declared_text(dataset: Any) -> str:
    """What the file says of text in its pixels; see ``DicomImage``."""
    said = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    if said == "YES":
        return "its BurnedInAnnotation (0028,0301) is YES"
    if said == "NO":
        return ""
    conversion = str(dataset.get("ConversionType") or "").strip()
    if conversion in ("DF", "DV", "SD", "SI", "WSD"):
        return f"digitised film, scan or screenshot: its ConversionType (0008,0064) is {conversion}"
    if "Secondary Capture" in _sop_class(dataset):
        return "a secondary capture (0008,0016)"
    if {"SECONDARY", "SCREEN SAVE"} & {str(word).upper() for word in (dataset.get("ImageType") or [])[1:]}:
        return "a secondary image by its ImageType (0008,0008)"
    return ""


def _sop_class(dataset: Any) -> str:
    return _uid_name(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID"))


def _uid_name(uid: Any) -> str:
    """In words; "" for what is no UID, and could be anything."""
    return str(_pydicom().uid.UID(str(uid)).name) if re.fullmatch(_UID, str(uid)) else ""


def _too_large(width: int, height: int) -> ImageError:
    return ImageError(
        f"a DICOM file too large: {width} x {height} pixels, at most {MAX_PIXELS:,} are decoded: shrink it", "too-large"
    )


@contextmanager
def _as_image_error(*, quoting: bool = False) -> Iterator[None]:
    # What is not of this module may quote the file; decoders of pixels do so only in quotation marks.
    # Every time: a test, or a program around us, may have put other filters first.
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom and its decoders raise anything
        kind: ImageErrorKind = "unsupported" if isinstance(error, NotImplementedError) else "damaged"
        reason = " ".join(re.split("['\"]", str(error))[0].split()) if quoting else ""
        what = ": ".join(filter(None, (type(error).__name__, reason)))
        raise ImageError(f"a DICOM file, damaged or not supported ({what}): export it again", kind) from None


def _decoded(dataset: Any) -> Any:
    syntax = _transfer_syntax(dataset)
    try:
        decoder = _pydicom().pixels.get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(
            f"a DICOM file in {_uid_name(syntax) or 'an unknown coding'}, which is not read: export it uncompressed",
            "unsupported",
        ) from None
    plugin = "imagecodecs" if syntax.is_encapsulated else ""
    with _as_image_error(quoting=True):
        levels, _ = decoder.as_array(dataset, index=0, decoding_plugin=plugin)
    shift = int(dataset.get("HighBit") or 0) + 1 - int(dataset.BitsStored)
    if shift > 0 and not syntax.is_encapsulated and int(dataset.BitsAllocated) > 1:
        raise ImageError(f"a DICOM file with {shift} bits below its pixels' lowest: export it again", "unsupported")
    return levels


def _transfer_syntax(dataset: Any) -> Any:
    """As the file names it; else as pydicom saw while it read, put where its decoders look for it."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        )
    return dataset.file_meta.TransferSyntaxUID


def _shaded(levels: Any, dataset: Any) -> Gray:
    """One lookup a grey value, and not a computation a pixel."""
    if levels.dtype.itemsize <= 2:
        low = int(levels.min())
        index = levels.astype(np.int32) - low
        counts = np.bincount(index.ravel())
        values = np.arange(low, low + len(counts))
    else:
        values, index, counts = np.unique(levels, return_inverse=True, return_counts=True)
        values, index = values.astype(np.int64), index.reshape(levels.shape)
    gray: Gray = _table(values, counts, dataset)[index]
    return gray


def _table(values: Any, counts: Any, dataset: Any) -> Gray:
    """The grey of each stored value; ``counts`` are the pixels that have it."""
    if dataset.get("ModalityLUTSequence"):
        shown, _ = _looked_up(values, dataset.ModalityLUTSequence[0], dataset)
    else:
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        changes = slope is not None and intercept is not None and (float(slope), float(intercept)) != (1, 0)
        shown = values * float(slope) + float(intercept) if changes else values
    if dataset.get("VOILUTSequence"):
        shown, bits = _looked_up(np.rint(shown), dataset.VOILUTSequence[0], dataset)
        shown = shown * (255 / (2**bits - 1))
    elif (window := _window(dataset)) is not None:
        # Of a data set that is 8-bit and unsigned, the function maps onto 0 to 255.
        to_8_bits = _pydicom().Dataset()
        to_8_bits.WindowCenter, to_8_bits.WindowWidth, to_8_bits.VOILUTFunction = window
        to_8_bits.PhotometricInterpretation, to_8_bits.PixelRepresentation, to_8_bits.BitsStored = "MONOCHROME2", 0, 8
        shown = _pydicom().pixels.apply_windowing(shown, to_8_bits)
    elif shown is values and int(dataset.BitsStored) <= 8 and int(dataset.PixelRepresentation) == 0:
        shown = shown * (255 / (2 ** int(dataset.BitsStored) - 1))
    else:
        low, high = _percentiles(shown, np.where(_is_padding(values, dataset), 0, counts))
        shown = (shown - low) * (255 / ((high - low) or 1))
    gray: Gray = np.rint(np.clip(shown, 0, 255)).astype(np.uint8)
    return gray


def _looked_up(values: Any, item: Any, dataset: Any) -> tuple[Any, int]:
    """The values of a lookup table, whose ends hold beyond it, and their bits, which pydicom takes 8 or 16 of only."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = item.LUTData
    if isinstance(entries, bytes):
        size = 2 if len(entries) >= 2 * (count or 2**16) else 1
        order = "<" if _transfer_syntax(dataset).is_little_endian else ">"
        entries = np.frombuffer(entries, f"{order}u{size}")
    entries = np.atleast_1d(np.asarray(entries, np.int64))[: count or 2**16]
    return entries[np.clip(values - first, 0, len(entries) - 1).astype(np.int64)], bits


def _window(dataset: Any) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None without one that its function allows."""
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None:
        return None
    if float(width) < (1 if function == "LINEAR" else 1e-9):
        return None
    return float(center), float(width), function


def _first(value: Any) -> Any:
    """Of several values the first."""
    return value if value is None or isinstance(value, str | float | int) else next(iter(value), None)


def _is_padding(values: Any, dataset: Any) -> Any:
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(values.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((int(padding), int(padding if limit is None else limit)))
    return (values >= ends[0]) & (values <= ends[1])


def _percentiles(shown: Any, counts: Any) -> tuple[float, float]:
    order = np.argsort(shown)
    up_to = np.cumsum(counts[order])
    low, high = (shown[order[np.searchsorted(up_to, up_to[-1] * q / 100)]] for q in _PERCENTILES)
    return float(low), float(high)


def _with_square_pixels(gray: Gray, dataset: Any) -> Gray:
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = dataset.get(name)
        if value and len(value) == 2 and min(map(float, value)) > 0:
            break
    else:
        return gray
    tall = float(value[0]) / float(value[1])
    if abs(tall - 1) < 0.01:  # spacings are rounded
        return gray
    height, width = gray.shape
    width, height = (width, round(height * tall)) if tall > 1 else (round(width / tall), height)
    if width * height > MAX_PIXELS:
        raise _too_large(width, height)
    return np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BILINEAR))


# pydicom's interface to a decoder: these two names, and a function.

DECODER_DEPENDENCIES: Final = {
    f"1.2.840.10008.1.2.{syntax}": ("imagecodecs",)
    for syntax in ("5", *(f"4.{jpeg}" for jpeg in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)))
}
"""RLE; JPEG baseline, extended, lossless and first-order lossless; JPEG-LS; JPEG 2000; HTJ2K."""

_SAME: Final = {2: "GRAYSCALE", 3: "RGB"}


def is_available(uid: str) -> bool:
    """Whether ``decode_frame`` reads this transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: Any) -> bytes:
    """Decode one compressed frame; called by pydicom.

    Raises:
        ValueError: the frame has another size than the file says, under which it passed the limits, or too many scans.
        RuntimeError: of imagecodecs: damaged or cut off.
    """
    import imagecodecs  # noqa: PLC0415 - an extra

    syntax = int(str(runner.transfer_syntax).rpartition(".")[2])
    if syntax == 5:
        return _decode_rle(source, runner)
    shape = (runner.rows, runner.columns, runner.samples_per_pixel)[: 2 if runner.samples_per_pixel == 1 else 3]
    photometric, deepest = str(runner.photometric_interpretation), max(2, runner.bits_allocated // 8)
    if syntax >= 90:
        start = source.find(b"\xff\x4f\xff\x51")
        right, bottom, left, top = (int.from_bytes(source[n : n + 4]) for n in range(start + 8, start + 24, 4))
        components = int.from_bytes(source[start + 40 : start + 42])
        if start < 0 or (bottom - top, right - left, components) != (*shape[:2], runner.samples_per_pixel):
            raise ValueError(f"a frame of {right - left} x {bottom - top} x {components} in a file of {shape}")
        levels = imagecodecs.jpeg2k_decode(source[start:])  # not what a container may hold beside it
        runner.set_option("bits_allocated", 8 * levels.dtype.itemsize)
        if photometric in ("YBR_ICT", "YBR_RCT"):
            photometric = "RGB"
    else:
        # A frame of another shape is refused before it is decoded.
        levels = np.empty(shape, np.uint8 if runner.bits_allocated == 8 else np.uint16)
        if syntax >= 80:
            imagecodecs.jpegls_decode(source, out=levels)
        elif source.count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        elif len(shape) == 2 or syntax >= 57:  # lossless: in the colours that it says
            imagecodecs.jpeg8_decode(source, out=levels, colorspace=_SAME[len(shape)], outcolorspace=_SAME[len(shape)])
        else:
            # Only Adobe's segment says for sure what the components are; pydicom has looked at JFIF's.
            coded = None if b"Adobe" in source[:4096] else "RGB" if photometric == "RGB" else "YCBCR"
            imagecodecs.jpeg8_decode(source, out=levels, colorspace=coded, outcolorspace="RGB")
            photometric = "RGB"
    if levels.shape != shape or levels.dtype.itemsize > deepest:
        raise ValueError(f"a frame of {levels.shape} of {levels.dtype} in a file of {shape} of {8 * deepest} bits")
    if len(shape) == 3:
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", photometric)
    return levels.tobytes()


def _decode_rle(source: bytes, runner: Any) -> bytes:
    """PS3.5 annex G: a segment for each byte of each sample, the highest byte first. pydicom's own has no limit."""
    import imagecodecs  # noqa: PLC0415 - an extra

    count, *starts = np.frombuffer(source, "<u4", 16).tolist()
    samples, size = runner.samples_per_pixel, runner.bits_allocated // 8
    if count != samples * size:
        raise ValueError(f"{count} segments, {samples * size} expected")
    planes = np.empty((count, runner.rows * runner.columns), np.uint8)
    for plane, start, end in zip(planes, starts, [*starts[1:count], len(source)], strict=False):
        # More than a plane is an error of its own.
        if len(imagecodecs.packbits_decode(source[start:end], out=plane)) != plane.size:
            raise ValueError("a segment of less than all pixels")
    runner.set_option("planar_configuration", 0)
    return planes.reshape(samples, size, -1)[:, ::-1].transpose(2, 0, 1).tobytes()
