-- Run once, by the image of PostgreSQL, when its volume is empty.
CREATE DATABASE mlflow OWNER emuedit;
CREATE DATABASE prefect OWNER emuedit;
