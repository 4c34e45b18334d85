"""Reports: pictures, tables and self-contained HTML pages. The top floor; nothing below imports it."""
