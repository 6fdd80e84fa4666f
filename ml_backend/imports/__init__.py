"""Makes a project of a folder of studies: reads, de-identifies and uploads images, and creates their tasks."""
