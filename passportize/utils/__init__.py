"""What every room may use: files, nested values, a model put back as it was. No passports here."""
