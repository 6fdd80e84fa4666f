import io

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from ml_backend.errors import ImageError
from ml_backend.images.decode import decode
from ml_backend.images.dicom import is_dicom, read_dicom


def radiograph(levels=None, **elements) -> FileDataset:
    """A digital radiograph of 12 bits and 48 x 40 pixels, without a window; further elements by their keywords."""
    if levels is None:
        levels = (np.add.outer(np.arange(48), 2 * np.arange(40)) * 30).astype(np.uint16)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = levels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def file_of(dataset: FileDataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom_file(levels=None, **elements) -> bytes:
    return file_of(radiograph(levels, **elements))


class TestGrayLevels:
    def test_of_a_linear_window(self):
        """PS3.3 C.11.2.1.2.1, by hand: 0 to 255 over 101 to 200 for the centre 151 and the width 100."""
        levels = np.array([[0, 101, 125, 150], [175, 200, 201, 4095]], np.uint16)

        pixels = read_dicom(dicom_file(levels, WindowCenter=[151, 9], WindowWidth=[100, 9])).pixels

        assert pixels.tolist() == [[0, 0, 62, 126], [191, 255, 255, 255]]

    def test_decoded_like_any_other_image(self):
        square = decode(dicom_file(WindowCenter=2048, WindowWidth=4096), 16, "film 9")

        assert square.shape == (16, 16)
        assert square[0, 0] < square[8, 8] < square[15, 15]


class TestRefused:
    def test_several_frames(self):
        frames = np.zeros((2, 8, 8), np.uint16)
        content = dicom_file(frames, Rows=8, Columns=8, NumberOfFrames=2)

        with pytest.raises(ImageError, match="of 2 frames"):
            read_dicom(content)
        assert is_dicom(content)
        assert read_dicom(content, first_frame=True).pixels.shape == (8, 8)
