import io
import random
import resource
import subprocess
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless

from ml_backend import extras
from ml_backend.errors import ImageError, MissingExtra
from ml_backend.images.decode import decode
from ml_backend.images.dicom import NotAnImage, is_dicom, known_view, open_dicom, read_dicom, render_dicom
from ml_backend.images.limits import budget
from tests.unit.images.files import film

NAME = "ZZPLANTED^MARIA"
LEVELS = (np.add.outer(np.arange(48), 2 * np.arange(40)) * 30).astype(np.uint16)  # 0 to 3,750


@pytest.fixture(autouse=True)
def no_search_for_text(monkeypatch):
    """Takes the longest, and is tested by itself."""
    monkeypatch.setitem(read_dicom.__globals__, "text_at_borders", lambda _pixels: "")


def radiograph(levels=LEVELS, **elements) -> FileDataset:
    """A digital radiograph of 12 bits, without a window; further elements by their keywords."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * levels.dtype.itemsize, min(12, 8 * levels.dtype.itemsize)
    dataset.PixelRepresentation = int(levels.dtype.kind == "i")
    dataset.PixelData = levels.tobytes()
    if levels.ndim == 3:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 3, 0, "RGB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1 if "HighBit" not in elements else elements["HighBit"]
    return dataset


def file_of(dataset: FileDataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(dataset: FileDataset, syntax: str, frame: bytes) -> FileDataset:
    dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.{syntax}")
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    return dataset


def rendered(dataset: FileDataset, **options):
    return render_dicom(open_dicom(file_of(dataset), **options))


def table(values, first=0, bits=16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new("LUTData", "US", list(values))
    return item


def close(pixels, shown) -> bool:
    """Within one grey level of a picture in 0 to 1."""
    return bool((np.abs(pixels - np.clip(shown, 0, 1) * 255) <= 1).all())


class TestGrayLevels:
    def test_of_a_linear_window(self):
        """PS3.3 C.11.2.1.2.1, by hand: 0 to 255 over 101 to 200 for the centre 151 and the width 100."""
        levels = np.array([[0, 101, 125, 150], [175, 200, 201, 4095]], np.uint16)

        pixels = rendered(radiograph(levels, WindowCenter=[151, 9], WindowWidth=[100, 9]))

        assert pixels.tolist() == [[0, 0, 62, 126], [191, 255, 255, 255]]

    @pytest.mark.parametrize(
        ("function", "shown"),
        [
            ("LINEAR_EXACT", (LEVELS - 1800.0) / 1500 + 0.5),
            ("SIGMOID", 1 / (1 + np.exp(-4 * (LEVELS - 1800.0) / 1500))),
        ],
    )
    def test_of_other_functions(self, function, shown):
        window = {"WindowCenter": 1800, "WindowWidth": 1500, "VOILUTFunction": function}

        assert close(rendered(radiograph(**window)), shown)
        assert close(rendered(radiograph(**window, PhotometricInterpretation="MONOCHROME1")), 1 - shown)

    def test_of_rescaled_signed_levels(self):
        """Hounsfield units from stored values of 12 bits below 0."""
        levels = (LEVELS.astype(np.int16) // 2) - 1000
        units = levels * 2.0 - 24

        pixels = rendered(radiograph(levels, RescaleSlope=2, RescaleIntercept=-24, WindowCenter=40, WindowWidth=401))

        assert close(pixels, (units - 39.5) / 400 + 0.5)

    def test_of_lookup_tables(self):
        """The modality's first, whose values from the VOI's first entry, 100, are the square's."""
        modality = table([4095 - n for n in range(4096)], bits=12)
        voi = table([n * n // 3995 for n in range(3996)], first=100, bits=12)

        pixels = rendered(radiograph(ModalityLUTSequence=[modality], VOILUTSequence=[voi]))

        assert close(pixels, np.clip(3995.0 - LEVELS, 0, None) ** 2 / 3995 / 4095)

    def test_without_a_window_are_spread_between_percentiles_of_what_is_no_padding(self):
        levels = LEVELS % 1000 + 1000
        levels[:10] = 4000
        low, high = np.percentile(levels[10:], (0.5, 99.5), method="inverted_cdf")

        for window in ({}, {"WindowCenter": 1, "WindowWidth": 0}):
            pixels = rendered(radiograph(levels, PixelPaddingValue=3990, PixelPaddingRangeLimit=4095, **window))
            assert close(pixels, (levels - low) / (high - low))

    def test_of_8_bits_without_a_window_stay(self):
        dim = film(48, 40) // 2 + 50
        assert (rendered(radiograph(dim)) == dim).all()
        assert (rendered(radiograph(dim, RescaleSlope=1, RescaleIntercept=0)) == dim).all()
        assert (rendered(radiograph(np.full((4, 4), 9, np.uint16))) == 0).all()

    def test_of_32_bits(self, monkeypatch):
        """Which take almost four times the memory."""
        levels = LEVELS.astype(np.uint32) * 100_000
        held = Mock(return_value=nullcontext())
        monkeypatch.setattr(budget, "hold", held)

        pixels = rendered(radiograph(levels, BitsStored=32, WindowCenter=150_000_000, WindowWidth=200_000_001))

        assert close(pixels, (levels - 149_999_999.5) / 200_000_000 + 0.5)
        held.assert_called_once_with(4 * 48 * 40)

    def test_of_colours(self):
        rgb = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
        shown = rgb @ [0.299, 0.587, 0.114] / 255

        assert close(rendered(radiograph(rgb)), shown)
        assert close(rendered(radiograph(rgb.astype(np.uint16) * 16, BitsStored=12)), shown * 4080 / 4095)
        ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
        assert np.abs(rendered(radiograph(ybr, PhotometricInterpretation="YBR_FULL")) - shown * 255).max() <= 2

    def test_of_a_palette(self):
        entries = np.arange(256, dtype=np.uint16)[::-1] * 257
        palette: dict[str, object] = {}
        for colour, share in (("Red", 1), ("Green", 0.5), ("Blue", 0)):
            keyword = f"{colour}PaletteColorLookupTable"
            palette[f"{keyword}Descriptor"] = [256, 0, 16]
            palette[f"{keyword}Data"] = (entries * share).astype(np.uint16).tobytes()
        pixels = rendered(radiograph(film(48, 40), PhotometricInterpretation="PALETTE COLOR", **palette))

        assert close(pixels, (1 - film(48, 40) / 255) * (0.299 + 0.587 / 2))

    def test_with_pixels_that_are_not_square(self):
        """Of a ramp, linear interpolation gives the ramp, but half a pixel from its ends."""
        window = {"WindowCenter": 2048.5, "WindowWidth": 4097}
        tall = rendered(radiograph(PixelAspectRatio=[3, 2], **window))
        wide = rendered(radiograph(ImagerPixelSpacing=[0.1, 0.2], **window))

        assert (tall.shape, wide.shape) == ((72, 40), (48, 80))
        y, x = np.arange(72) / 1.5 - 1 / 6, np.arange(80) / 2 - 0.25
        assert close(tall[1:-1], 30 * np.add.outer(y, 2 * np.arange(40))[1:-1] / 4096)
        assert close(wide[:, 1:-1], 30 * np.add.outer(np.arange(48), 2 * x)[:, 1:-1] / 4096)

    def test_first_read_by_several_threads(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(file_of(radiograph()))
        code = (
            "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path\n"
            "from ml_backend.images.dicom import open_dicom\n"
            "content = Path(sys.argv[1]).read_bytes()\n"
            "print(len(list(ThreadPoolExecutor(8).map(lambda _: open_dicom(content), range(8)))))"
        )

        command = [sys.executable, "-c", code, tmp_path / "a.dcm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (done.stdout, done.stderr) == ("8\n", "")

    def test_decoded_like_any_other_image(self):
        square = decode(file_of(radiograph(WindowCenter=2048, WindowWidth=4096)), 16, "film 9")

        assert square.shape == (16, 16)
        assert square[0, 0] < square[8, 8] < square[15, 15]


class TestCodings:
    @pytest.mark.parametrize(
        ("syntax", "encode", "off"),
        [
            ("4.51", lambda levels: imagecodecs.jpeg8_encode(levels, level=95, bitspersample=12), 2),
            ("4.57", lambda levels: imagecodecs.jpeg8_encode(levels, lossless=True, bitspersample=12), 0),
            ("4.70", lambda levels: imagecodecs.jpeg8_encode(levels, lossless=True, predictor=1, bitspersample=12), 0),
            ("4.80", imagecodecs.jpegls_encode, 0),
            ("4.81", lambda levels: imagecodecs.jpegls_encode(levels, level=2), 1),
            ("4.90", lambda levels: imagecodecs.jpeg2k_encode(levels, codecformat="j2k", bitspersample=12), 0),
            ("4.91", lambda levels: imagecodecs.jpeg2k_encode(levels, codecformat="j2k", level=90), 1),
            ("4.201", imagecodecs.htj2k_encode, 0),
        ],
    )
    def test_of_12_bits(self, syntax, encode, off):
        window = {"WindowCenter": 2048, "WindowWidth": 4096}

        pixels = rendered(compressed(radiograph(**window), syntax, bytes(encode(LEVELS))))

        assert np.abs(pixels.astype(int) - rendered(radiograph(**window))).max() <= off

    @pytest.mark.parametrize("levels", [LEVELS, LEVELS.astype(np.int16) - 2000, np.stack([film(48, 40)] * 3, axis=-1)])
    def test_run_length(self, levels):
        dataset = radiograph(levels)
        dataset.compress(RLELossless)

        assert (rendered(dataset) == rendered(radiograph(levels))).all()

    def test_deflated(self):
        content = file_of(radiograph())
        end = 144 + int.from_bytes(content[140:144], "little")
        # Two characters more; the length of all meta elements stands first.
        head = content[144:end].replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
        squeeze = zlib.compressobj(wbits=-15)
        deflated = content[:140] + len(head).to_bytes(4, "little") + head + squeeze.compress(content[end:])

        assert (render_dicom(open_dicom(deflated + squeeze.flush())) == rendered(radiograph())).all()


# Of pydicom's own files, what is no picture by itself, and what cannot be read; all others are images.
SKIPPED = {
    "DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-nopatient",
    "DICOMDIR-reordered", "ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "badVR.dcm", "liver.dcm",
    "liver_1frame.dcm", "liver_expb.dcm", "liver_expb_1frame.dcm", "reportsi.dcm",
    "reportsi_with_empty_number_tags.dcm", "rtdose.dcm", "rtdose_1frame.dcm", "rtdose_expb.dcm",
    "rtdose_expb_1frame.dcm", "rtdose_rle.dcm", "rtdose_rle_1frame.dcm", "rtplan.dcm", "rtplan_truncated.dcm",
    "rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm",
}  # fmt: skip
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "a frame of",
    **dict.fromkeys(["OBXXXX1A_expb.dcm", "OBXXXX1A_expb_2frame.dcm"], "a palette in big-endian"),
    "MR_truncated.dcm": "8130 vs 8192 bytes",
    "UN_sequence.dcm": "without its pixels",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "without its pixels",
    "empty_charset_LEI.dcm": "before it says what it holds",
    "meta_missing_tsyntax.dcm": "without",
    "nested_priv_SQ.dcm": "without",
    "no_meta_group_length.dcm": "without its pixels",
    "priv_SQ.dcm": "without its pixels",
    **{f"IM0000{n}": "without its pixels" for n in [f"0{d}" for d in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"]},
    **{f"IM0000{n}": "without its pixels" for n in [f"1{d}" for d in "0123456789ABCD"]},
}
SAME = [
    ("MR_small.dcm", ["MR_small_RLE", "MR_small_bigendian", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"]),
    ("emri_small.dcm", ["emri_small_RLE", "emri_small_jpeg_2k_lossless", "emri_small_jpeg_ls_lossless"]),
    ("SC_rgb.dcm", ["SC_rgb_jpeg_gdcm", "SC_rgb_rle", "SC_rgb_expb", "SC_rgb_dcmtk_+eb+cr", "SC_rgb_gdcm_KY"]),
    ("OBXXXX1A.dcm", ["OBXXXX1A_rle", "OBXXXX1A_2frame"]),
    ("RG3_UNCR.dcm", ["RG3_J2KR"]),
    ("US1_UNCR.dcm", ["US1_J2KR"]),
    ("JPGExtended.dcm", ["JPEG-lossy"]),
    ("SC_rgb_jpeg_dcmd.dcm", ["SC_jpeg_no_color_transform"]),
    ("SC_rgb_jpeg_app14_dcmd.dcm", ["SC_jpeg_no_color_transform_2"]),
]


def pydicom_files() -> dict[str, Path]:
    folders = {Path(str(get_testdata_file(name))).parent for name in ("CT_small.dcm", "RG1_UNCR.dcm")}
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path.name: path for path in files if is_dicom(path.read_bytes()[:200])}


class TestPydicomsFiles:
    def test_come_out_as_named(self):
        images, skipped, refused = set(), set(), {}
        files = pydicom_files()
        for name, path in files.items():
            try:
                open_dicom(path.read_bytes(), first_frame=True)
                images.add(name)
            except NotAnImage:
                skipped.add(name)
            except ImageError as error:
                refused[name] = str(error)
        for name in REFUSED.keys() & images:
            images.remove(name)
            with pytest.raises(ImageError) as found:
                read_dicom(files[name].read_bytes(), first_frame=True)
            refused[name] = str(found.value)

        assert skipped == SKIPPED
        assert refused.keys() == REFUSED.keys()
        assert [name for name, words in REFUSED.items() if words not in refused[name]] == []
        assert len(images) > 120

    @pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about files that break a rule
    def test_of_a_window_are_within_a_grey_level_of_pydicoms_own_chain(self):
        compared = 0
        for name, path in pydicom_files().items():
            dataset = dcmread(path, force=True)
            if name in REFUSED or "WindowCenter" not in dataset or "VOILUTSequence" in dataset:
                continue
            if dataset.file_meta.TransferSyntaxUID.is_compressed or dataset.Rows > 1000:
                continue
            units = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(
                dataset.get("RescaleIntercept", 0)
            )
            center, width = (np.atleast_1d(dataset[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
            shown = (units - (float(center) - 0.5)) / (float(width) - 1) + 0.5
            pixels = render_dicom(open_dicom(path.read_bytes()))
            if pixels.shape == shown.shape:
                assert close(pixels, 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown), name
                compared += 1
        assert compared > 25

    @pytest.mark.parametrize(("name", "others"), SAME)
    def test_are_the_same_in_every_coding(self, name, others):
        files = pydicom_files()
        wanted = render_dicom(open_dicom(files[name].read_bytes(), first_frame=True)).astype(int)
        for other in others:
            pixels = render_dicom(open_dicom(files[f"{other}.dcm"].read_bytes(), first_frame=True))
            assert np.abs(pixels - wanted).max() <= (25 if "+eb" in other or "KY" in other else 1), other


class TestFields:
    def test_as_the_standard_defines_them(self):
        content = file_of(radiograph(PatientID=" MRN-1 ", StudyDate="20240229", ViewPosition="PA"))

        assert read_dicom(content).fields == {
            "patient_id": "MRN-1",
            "study_date": "20240229",
            "view": "PA",
            "modality": "DX",
        }

    @pytest.mark.parametrize(
        ("said", "day"), [("2024.02.29", "20240229"), ("20230229", ""), ("2024W091", ""), ("", "")]
    )
    def test_date(self, said, day):
        assert read_dicom(file_of(radiograph(StudyDate=said))).fields["study_date"] == day

    @pytest.mark.parametrize(
        ("position", "meaning", "view"),
        [
            ("AP", "", "AP"),
            ("LL", "", "LL"),
            ("LATERAL", "", "LATERAL"),
            ("", "postero-anterior", "PA"),
            ("AP SUPINE", "", "AP"),
            ("", "antero-posterior oblique", "UNKNOWN"),
            ("", "left lateral", "LL"),
            ("", "medio-lateral oblique", "MLO"),
            *(
                (lateral, "", "LATERAL")
                for lateral in ("LAT_ERECT", "Lateral (LL)", "PA LAT", "LATERALE", "RLAT ERECT")
            ),
            *((left, "", "LL") for left in ("L LAT", "LAT L", "LLAT", "LATERAL LEFT")),
            ("AP LATERAL DECUBITUS", "", "AP"),
            ("", "", ""),
            ("MLO", "left lateral", "MLO"),
            ("DOE", "Jane Doe", "UNKNOWN"),
        ],
    )
    def test_view(self, position, meaning, view):
        code = Dataset()
        code.CodeMeaning = meaning

        assert read_dicom(file_of(radiograph(ViewPosition=position, ViewCodeSequence=[code]))).fields["view"] == view
        assert known_view("側面") == "UNKNOWN"

    def test_nothing_but_the_patients_id_is_text_of_the_file(self):
        dataset = radiograph()
        texts = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
        kept = {"PhotometricInterpretation", "VOILUTFunction"}
        planted = 0
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if vr in texts and keyword and keyword not in kept and tag > 0x00080005:
                dataset.add_new(tag, vr, NAME)
                planted += 1
        dataset.add_new(0x00091001, "LO", NAME)
        content = file_of(dataset)
        assert planted > 1500
        assert content.count(b"ZZPLANTED") == planted + 1

        image = read_dicom(content)

        assert image.fields.pop("patient_id") == NAME
        assert "PLANTED" not in repr((image.fields, image.burned_in))
        assert b"PLANTED" not in image.pixels.tobytes()
        numbers = file_of(radiograph(WindowCenter="20480000.5", WindowWidth=1)).replace(b"20480000.5", b"ZZPLANTED ")
        quotes = file_of(radiograph(RescaleSlope="20480000.5", RescaleIntercept=1))
        quotes = quotes.replace(b"20480000.5", b"Z'\"PLANTED")
        broken = [content[: len(content) - 99], numbers, quotes]
        broken += [content.replace(b"MONOCHROME2", word) for word in (b"ZZPLANTED  ", b"YBR_PLANTED")]
        broken.append(file_of(radiograph(VOILUTFunction="ZZ\nPLANTED", WindowCenter=1, WindowWidth=9)))
        for file in broken:
            with pytest.raises(ImageError) as error:
                read_dicom(file)
            assert "PLANTED" not in str(error.value)


class TestBurnedIn:
    @pytest.mark.parametrize(
        ("elements", "reason"),
        [
            ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation (0028,0301) is YES"),
            ({"ConversionType": "SI"}, "its ConversionType (0008,0064) is SI"),
            ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
            ({"ImageType": ["DERIVED", "SECONDARY"]}, "a secondary image"),
            ({"ImageType": ["DERIVED", "SECONDARY"], "BurnedInAnnotation": "NO"}, ""),
            ({"ImageType": ["DERIVED", "PRIMARY"]}, ""),
        ],
    )
    def test_by_what_the_file_says(self, elements, reason):
        assert reason in (found := read_dicom(file_of(radiograph(**elements))).burned_in)
        assert bool(found) == bool(reason)

    def test_by_its_pixels(self, monkeypatch):
        monkeypatch.setitem(read_dicom.__globals__, "text_at_borders", lambda pixels: f"text in {pixels.shape}")

        assert read_dicom(file_of(radiograph(BurnedInAnnotation="NO"))).burned_in == "text in (48, 40)"


class TestRefused:
    def test_several_frames(self):
        frames = np.zeros((2, 8, 8), np.uint16)
        content = file_of(radiograph(frames[0], PixelData=frames.tobytes(), NumberOfFrames=2))

        with pytest.raises(ImageError, match="of 2 frames"):
            open_dicom(content)
        assert render_dicom(open_dicom(content, first_frame=True)).shape == (8, 8)

    @pytest.mark.parametrize(
        ("elements", "words", "kind"),
        [
            ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels, at most 80,000,000", "too-large"),
            ({"PixelAspectRatio": [60_000, 1]}, "at most 80,000,000", "too-large"),
            ({"PixelData": bytes(99)}, "100 vs 3840 bytes", "damaged"),
            ({"PixelRepresentation": None}, "without PixelRepresentation", "damaged"),
            ({"HighBit": 15}, "4 bits below", "unsupported"),
            ({"PhotometricInterpretation": "CMYK"}, "neither of grey levels", "unsupported"),
        ],
    )
    def test_by_its_elements(self, elements, words, kind):
        with pytest.raises(ImageError, match=words) as error:
            rendered(radiograph(**elements))
        assert error.value.kind == kind

    def test_coding_that_is_not_read(self):
        with pytest.raises(ImageError, match="in MPEG2 Main Profile / Main Level, which is not read"):
            rendered(compressed(radiograph(), "4.100", b"\0\0\1\xb3"))

    @pytest.mark.parametrize(
        ("syntax", "encode"),
        [
            ("4.57", lambda levels: imagecodecs.jpeg8_encode(levels, lossless=True, bitspersample=12)),
            ("4.80", imagecodecs.jpegls_encode),
            ("4.90", lambda levels: imagecodecs.jpeg2k_encode(levels, codecformat="j2k")),
        ],
    )
    def test_frame_of_another_size(self, syntax, encode):
        """Its declared 48 x 40 pixels pass every limit; the frame's own are 600 million."""
        frame = bytes(encode(LEVELS))
        sizes = [(48).to_bytes(n) + (40).to_bytes(n) for n in (2, 4)] + [(40).to_bytes(4) + (48).to_bytes(4)]
        for size in sizes:
            frame = frame.replace(size, (24_500).to_bytes(len(size) // 2) * 2, 1)

        with pytest.raises(ImageError, match="24500"):
            rendered(compressed(radiograph(), syntax, frame))

    def test_bombs(self, monkeypatch):
        run = bytes((129, 0)) * 100_000  # 128 zeros each
        frame = np.array([2, 64, 64 + len(run), *[0] * 13], "<u4").tobytes() + run * 2
        with pytest.raises(ImageError, match="TOO_SMALL"):
            rendered(compressed(radiograph(), "5", frame))
        with pytest.raises(ImageError, match="a segment of less than all pixels"):
            rendered(compressed(radiograph(), "5", frame[:66]))
        monkeypatch.setitem(open_dicom.__globals__, "MAX_BYTES", 1000)
        with pytest.raises(ImageError, match="at most 1,000 are read"):
            open_dicom(file_of(radiograph()))

    def test_deflated_behind_a_head_of_another_length_is_not_inflated(self):
        """(0002,0000) left out, which pydicom accepts, or wrong."""
        content = file_of(radiograph())
        end = 144 + int.from_bytes(content[140:144], "little")
        head = content[144:end].replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
        squeeze = zlib.compressobj(wbits=-15)
        body = squeeze.compress(content[end:]) + squeeze.flush()

        for start in (content[:132], content[:140] + (9).to_bytes(4, "little")):
            with pytest.raises(ImageError, match="whose head gives a wrong length"):
                open_dicom(start + head + body)

    def test_codestream_hidden_behind_another(self):
        """JP2 lets a box of anything precede the picture: what was checked is what is decoded."""
        large = bytes(imagecodecs.jpeg2k_encode(np.zeros((500, 500), np.uint16), codecformat="jp2"))
        small = bytes(imagecodecs.jpeg2k_encode(LEVELS, codecformat="j2k"))
        start = large.index(b"jp2c") - 4
        frame = large[:start] + (8 + len(small)).to_bytes(4) + b"free" + small + large[start:]

        assert (rendered(compressed(radiograph(), "4.90", frame)) == rendered(radiograph())).all()

    def test_deeper_frame_than_the_file_says(self):
        frame = bytes(imagecodecs.jpeg2k_encode(LEVELS.astype(np.uint32) << 8, codecformat="j2k", bitspersample=24))

        with pytest.raises(ImageError, match=r"of uint32 in a file .* of 16 bits"):
            rendered(compressed(radiograph(), "4.90", frame))

    def test_without_the_extra(self, monkeypatch):
        def missing(extra: str, user: str) -> None:
            raise MissingExtra(f"{user} needs pydicom: `pip install '...[{extra}]'`")

        monkeypatch.setattr(extras, "require", missing)

        with pytest.raises(
            ImageError, match=r"a DICOM file: reading DICOM needs pydicom: `pip install '...\[dicom\]'`"
        ):
            decode(file_of(radiograph()), 32, "film 9")

    def test_damage_gives_pixels_or_an_image_error_and_not_a_word(self, capfd, caplog):
        """Bytes overwritten, cut out and cut off, by a fixed seed."""
        files = pydicom_files()
        small = [path.read_bytes() for name, path in files.items() if name not in SKIPPED | REFUSED.keys()]
        small = [content for content in small if len(content) < 60_000]
        rng = random.Random(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(300):
            content = bytearray(rng.choice(small))
            for _ in range(rng.randint(1, 6)):
                place, length = rng.randrange(len(content)), rng.randint(1, 4)
                content[place : place + length] = rng.choice([rng.randbytes(length), b"", b"\xff" * length])
            if rng.random() < 0.2:
                del content[rng.randrange(len(content)) :]
            try:
                assert read_dicom(bytes(content), first_frame=True).pixels.ndim == 2
            except ImageError:
                continue
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
