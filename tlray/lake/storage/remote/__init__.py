"""Places that are only read: sources on web servers, in Google Cloud Storage and in Azure Blob Storage."""
